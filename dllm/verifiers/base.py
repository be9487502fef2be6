"""What every verifier says of itself: how many canvases of a row one pass runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Verifier(ABC):
    """Runs a scheduler's next steps in one pass and keeps those that it would have taken itself.

    The engine is the same for all (`dllm/verifier.py`); they differ in how they count.
    """

    source: ClassVar[str]  # paper and code that the method is from

    @property
    @abstractmethod
    def num_variants(self) -> int:
        """The most canvases of a row in one pass; 1 is decoding without a verifier."""

    @property
    @abstractmethod
    def adapts(self) -> bool:
        """Whether each row's draft length follows how much of its drafts was right."""

    def summary(self) -> dict[str, Any]:
        """Returns the name and options as a mapping that builds the same verifier again."""
        return {"name": type(self).__module__.rpartition(".")[2], **vars(self)}
