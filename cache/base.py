"""The contract of every cache: it plans which columns the next pass feeds, stores and predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor

from dllm.models.config import ModelSpec
from dllm.registry import Part
from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import Feeds, Progress
from dllm.state.standing import HostCount, Standing
from dllm.state.store import KVStore

# With the messages, so that a method has its whole contract from here.
__all__ = ["Cache", "Candidates", "Canvas", "Feeds", "FirstToken", "HostCount", "KVStore"]
__all__ += ["ModelSpec", "Progress", "Standing", "StepPlan"]

FirstToken = Literal["feed", "force"]


@dataclass(frozen=True)
class Cache(Part, ABC):
    """Plans forward passes; holds no tensors, the K/V store belongs to the loop."""

    source: ClassVar[str]  # paper and code that the policy is from
    uses_store: ClassVar[bool] = True  # needs a model with a K/V store
    lockstep: ClassVar[bool] = True  # all rows enter their next block together
    names_columns: ClassVar[bool] = False  # feeds the columns that `feeds` names
    watches: ClassVar[bool] = False  # notes what each pass showed
    needs_plan: ClassVar[bool] = False  # needs to know what the next step commits
    final_blocks: ClassVar[bool] = False  # what it stored of finished blocks serves later runs too
    # A pass within a block is a function of the canvas and of the block's refresh.
    replayable: ClassVar[bool] = False
    masks_last: ClassVar[bool] = False  # serves models in which masks stand behind all tokens
    encodes: ClassVar[bool] = False  # serves models of an encoder and a decoder
    even: ClassVar[bool] = False  # a row that enters feeds no more columns than the others do

    @property
    def refreshes(self) -> bool:
        """Whether the pass that begins a block writes every slot anew, for all rows at once."""
        return self.uses_store and self.lockstep

    @abstractmethod
    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        """Returns the next pass for a canvas, given what the host knows of it."""

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        """Returns which columns the next pass feeds, (B, C) bool; the loop counts them."""
        raise NotImplementedError(f"{type(self).__name__} feeds a range of columns")

    def counting(self, spec: ModelSpec) -> Feeds:
        """Returns what counts the columns of the next pass: `feeds`, unless the host can."""
        return partial(self.feeds, spec=spec)

    def fed(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        """Returns `feeds` of the canvas as it stands, for a plan."""
        return canvas.fed(partial(self.feeds, spec=spec))

    def kept(self, canvas: Canvas, progress: Progress, make: Callable[[], StepPlan]) -> StepPlan:
        """Returns `make()`, or what it made the last time if that would be the same.

        It may look at where rows and their blocks begin and end, at what is stored, at who ended
        and at `progress.num_fed`, and at nothing else that changes.
        """
        plan: StepPlan = canvas.keep(
            "plan",
            lambda *_: make(),
            canvas.first_block,
            canvas.block_start,
            canvas.length,
            canvas.prompt_length,
            canvas.clean,
            canvas.finished,
            progress.num_fed,
        )
        return plan

    def prefill(self, canvas: Canvas, spec: ModelSpec) -> Iterator[StepPlan]:
        """Yields passes over the prompts before the first step, without logits; normally none."""
        return iter(())

    def watch(
        self,
        canvas: Canvas,
        plan: StepPlan,
        store: KVStore | None,
        candidates: Candidates,
        further: Candidates | None,
    ) -> Any:
        """Returns what the next plans find in `canvas.cache_state`.

        Called after each pass of a plan, before the step is taken. `further` are the candidates of
        logits that the plan asks for behind those of the window.
        """
        raise NotImplementedError(f"{type(self).__name__} notes nothing")

    def admits(self, progress: Progress) -> bool:
        """Whether further rows may enter the canvas now, and what it holds stays right."""
        return not self.lockstep or progress.entered or not progress.unfinished

    def check(self, spec: ModelSpec) -> None:
        """Raises ValueError when the policy cannot serve a model."""
