"""What a judge says of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Judgement:
    """Whether an answer counts as right, and how that came about."""

    correct: bool | None  # None: not scored
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON-ready; bools are scores
    extracted: bool | None = None  # whether the text states an answer; None: not looked for
