"""Which questions are asked, and how: `parallel_bench:shuffle,names=3-6` and its options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dllm.eval.tasks.options import TaskOptions
from dllm.eval.tasks.parallel_bench.families import FAMILIES
from dllm.eval.tasks.parallel_bench.names import NAMES
from dllm.registry import nearest

STYLES = ("plain", "chat")
FEWEST_NAMES = 2  # one name has no other order
MOST_NAMES = len(NAMES) - 1  # somebody has to be left to join the line


@dataclass(frozen=True)
class Selection:
    """Families, lengths of lines, and the shape of prompts."""

    families: tuple[str, ...] = tuple(FAMILIES)
    shortest: int = 3  # names in a line
    longest: int = 6
    style: str = "plain"
    shots: int = 1  # solved questions of the same family in each prompt

    def __post_init__(self) -> None:
        for family in self.families:
            if family not in FAMILIES:
                known = nearest(family, FAMILIES)
                raise ValueError(f"unknown family {family!r} of parallel_bench: {known}")
        if self.style not in STYLES:
            known = nearest(self.style, STYLES)
            raise ValueError(f"unknown style {self.style!r} of parallel_bench: {known}")
        if not FEWEST_NAMES <= self.shortest <= self.longest <= MOST_NAMES:
            raise ValueError(
                f"names={self.shortest}-{self.longest} must lie between {FEWEST_NAMES} and "
                f"{MOST_NAMES}, the smaller number first"
            )

    def describe(self) -> dict[str, Any]:
        """Returns what decides the questions, as JSON-ready values."""
        return {
            "families": list(self.families),
            "names": [self.shortest, self.longest],
            "style": self.style,
            "shots": self.shots,
        }


def select(text: str, options: TaskOptions) -> Selection:
    """Returns what stands behind the task's name, `family,...,names=3-6`, with the options.

    No family stands for all of them; `names=15` for lines of that length alone.
    """
    refused = [name for name in options.given if name not in ("--style", "--shots")]
    if refused:
        raise ValueError(
            f"{', '.join(refused)}: parallel_bench makes its own problems; it has --style, "
            "--shots and, as in parallel_bench:shuffle,names=3-6, families and lengths"
        )
    items = [item.strip() for item in text.split(",") if item.strip()]
    lengths = [item for item in items if "=" in item]
    shortest, longest = _lengths(lengths) if lengths else (Selection.shortest, Selection.longest)
    return Selection(
        families=tuple(dict.fromkeys(i for i in items if "=" not in i)) or Selection.families,
        shortest=shortest,
        longest=longest,
        style=Selection.style if options.style is None else options.style,
        shots=Selection.shots if options.shots is None else options.shots,
    )


def _lengths(items: list[str]) -> tuple[int, int]:
    found = re.fullmatch(r"names\s*=\s*(\d+)(?:\s*-\s*(\d+))?", items[0])
    if found is None or len(items) > 1:
        raise ValueError(
            f"parallel_bench:{','.join(items)}: the only option is names: write a length "
            "once, as names=15 or names=3-6"
        )
    return int(found[1]), int(found[2] or found[1])
