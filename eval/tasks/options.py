"""What a task that reads its problems can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskOptions:
    """Options of a task; None takes the task's own."""

    data: Path | None = None  # JSON lines with the problems; None: the hub
    style: str | None = None  # of the prompt
    examples: Path | None = None  # JSON lines with solved problems; None: the hub
    shots: int | None = None  # solved problems in each prompt
    run_code: bool = False  # whether model-written code may be executed

    def __post_init__(self) -> None:
        if self.shots is not None and self.shots < 0:
            raise ValueError(f"shots={self.shots} must be 0 or more")

    @property
    def given(self) -> list[str]:
        """The command-line names of the options that were set."""
        usual = TaskOptions()
        return [
            f"--{name.replace('_', '-')}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(usual, name)
        ]
