"""Self-speculative decoding (SSD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from dllm.decoding.speculation.verifiers import Execution, Guard, StepVerifier
from dllm.options import Range


@dataclass(frozen=True)
class SelfSpeculative(StepVerifier):
    """Drafts `draft_length` schedule steps beyond the one that is certain."""

    draft_length: Annotated[int, Range(0, 255)] = (
        4  # steps; each is one more canvas in the pass that verifies
    )
    adaptive: bool = False  # rows whose drafts fail draft fewer steps, up to `draft_length` again
    execution: Execution = "batch"
    margin_guard: Guard = 0.0  # probability below which a decision waits for a pass without drafts

    source: ClassVar[str] = "arXiv 2510.04147"

    @property
    def num_variants(self) -> int:
        return self.draft_length + 1
