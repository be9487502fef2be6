"""Self-speculative decoding (SSD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.decoding.speculation.verifiers import Execution, Verifier


@dataclass(frozen=True)
class SelfSpeculative(Verifier):
    """Drafts `draft_length` schedule steps beyond the one that is certain."""

    draft_length: int = 4  # steps; each is one more canvas in the pass that verifies
    adaptive: bool = False  # rows whose drafts fail draft fewer steps, up to `draft_length` again
    execution: Execution = "batch"
    margin_guard: float = 0.0  # probability below which a decision waits for a pass without drafts

    source: ClassVar[str] = "arXiv 2510.04147"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_length < 0:
            raise ValueError(f"draft_length={self.draft_length} must be at least 0 (no drafts)")

    @property
    def num_variants(self) -> int:
        return self.draft_length + 1
