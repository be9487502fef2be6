"""Free draft-and-verification (FreeDave)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.verifiers.base import Verifier


@dataclass(frozen=True)
class FreeDave(Verifier):
    """Drafts `draft_steps` schedule steps, of which the first one is certain.

    `freedave:4` is `ssd:3`. A draft is kept where it equals what the scheduler decides, as in the
    authors' proof; their code with a threshold is content with a subset, which may leave the path.
    """

    draft_steps: int = 4  # canvases in the pass that verifies
    adaptive: bool = False  # rows whose drafts fail draft fewer steps, up to `draft_steps` again

    source: ClassVar[str] = "arXiv 2510.00294; cychomatica/FreeDave generation/core.py"

    def __post_init__(self) -> None:
        if self.draft_steps < 1:
            raise ValueError(f"draft_steps={self.draft_steps} must be at least 1 (no drafts)")

    @property
    def num_variants(self) -> int:
        return self.draft_steps

    @property
    def adapts(self) -> bool:
        return self.adaptive
