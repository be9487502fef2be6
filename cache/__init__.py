"""The K/V policies: which columns a pass feeds and attends to, one method a file."""

from __future__ import annotations

if __name__ != "dllm.cache":
    raise ImportError("this folder is a part of dllm: import dllm.cache, not cache")

import sys

from dllm.cache.base import Cache
from dllm.registry import Registry

registry: Registry[Cache] = Registry(sys.modules[__name__], Cache, "cache")  # type: ignore[type-abstract]

__all__ = ["Cache", "registry"]
