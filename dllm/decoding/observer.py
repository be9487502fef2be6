"""What someone who watches a generation from inside is shown: each pass, before it is acted on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dllm.models.model import DenoisingModel
from dllm.state.candidates import Sampling
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.status import Status
from dllm.state.store import KVStore
from dllm.state.window import Window


@dataclass(frozen=True)
class Pass:
    """One pass and the state of everything at that moment; none of it may be changed."""

    model: DenoisingModel  # with guidance, if there is any
    sampling: Sampling
    canvas: Canvas  # as the pass saw it; where variants were compared, with the best written
    status: Status  # from which the pass was planned
    window: Window
    plan: StepPlan  # for one variant of each row
    logits: Tensor  # (B, W, V), 0 where a pass gives none, or (B, 2 W, V) with shadows
    store: KVStore | None  # keeps stamps
    num_variants: int  # rows of the store for each row of the batch


Observer = Callable[[Pass], None]
