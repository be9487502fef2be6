"""The floor of a search: the accuracy below which no cost is low enough."""

from __future__ import annotations

import re
from dataclasses import dataclass

BASELINE = "stepwise"
_FORM = re.compile(r"accuracy\s*>=\s*(\d*\.?\d+)\s*(%?)\s*(?:\*\s*(\w+))?")


@dataclass(frozen=True)
class Floor:
    """A share of the stepwise accuracy, or an accuracy by itself."""

    share: float  # 0 to 1
    relative: bool  # of the stepwise accuracy, which is measured on the same problems

    @staticmethod
    def parse(text: str) -> Floor:
        """Returns the floor that a text such as "accuracy >= 0.98 * stepwise" asks for."""
        found = _FORM.fullmatch(text.strip())
        if found is None or found[3] not in (None, BASELINE):
            raise ValueError(
                f"--floor {text!r} cannot be read: write it as "
                f'"accuracy >= 0.98 * {BASELINE}", or "accuracy >= 0.9"'
            )
        share = float(found[1]) / (100 if found[2] else 1)
        if not 0 < share <= 1:
            raise ValueError(f"--floor {text!r}: {share:g} must be above 0 and at most 1")
        return Floor(share, found[3] is not None)

    def __str__(self) -> str:
        return f"accuracy >= {self.share:g}" + (f" * {BASELINE}" if self.relative else "")

    def excess(self, right: bool, stepwise: bool) -> float:
        """Returns by how much one answer lifts the mean above the floor, which is then 0."""
        return right - self.share * (stepwise if self.relative else 1.0)
