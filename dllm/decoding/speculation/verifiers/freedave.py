"""Free draft-and-verification (FreeDave)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dllm.decoding.speculation.verifiers import Execution, Guard, StepVerifier
from dllm.options import Rows


@dataclass(frozen=True)
class FreeDave(StepVerifier):
    """Drafts `draft_steps` schedule steps, of which the first one is certain.

    `freedave:4` is `ssd:3`. A draft is kept where it equals what the scheduler decides, as in the
    authors' proof; their code with a threshold is content with a subset, which may leave the path.
    """

    draft_steps: Rows = 4  # canvases in the pass that verifies
    adaptive: bool = False  # rows whose drafts fail draft fewer steps, up to `draft_steps` again
    execution: Execution = "batch"
    margin_guard: Guard = 0.0  # probability below which a decision waits for a pass without drafts

    # The authors' settings, with blocks of 32; FreeDave++ is the same on "threshold:0.95".
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llada": {"draft_steps": 4, "execution": "tree"},
        "dream": {"draft_steps": 8, "execution": "tree"},
    }
    source: ClassVar[str] = "arXiv 2510.00294; cychomatica/FreeDave generation/core.py"

    @property
    def num_variants(self) -> int:
        return self.draft_steps
