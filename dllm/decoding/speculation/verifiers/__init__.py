"""The verifiers: how far ahead of a row its next steps are drafted, one method a file."""

from __future__ import annotations

import sys

from dllm.decoding.speculation.verifiers.base import Verifier
from dllm.registry import Registry

registry: Registry[Verifier] = Registry(sys.modules[__name__], Verifier, "verifier")  # type: ignore[type-abstract]

__all__ = ["Verifier", "registry"]
