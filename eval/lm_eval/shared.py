"""What the lm-evaluation-harness asks of every model beside answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor

from dllm.eval.lm_eval.processes import find_processes


class SharedLM(LM):
    """A model on one of several processes, each of which answers its part of the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.processes = find_processes()

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.processes.rank

    @property
    def world_size(self) -> int:
        """How many processes share the requests."""
        return self.processes.count

    @property
    def accelerator(self) -> Any:
        """What older versions of lm_eval talk to; None for a single process."""
        return self.processes.accelerator

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Returns the tensors of all processes in one."""
        return self.processes.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Returns the objects of all processes on process `dst`, None on the others."""
        return self.processes.gather_objects(obj, dst)

    def barrier(self) -> None:
        """Returns when all processes are here."""
        self.processes.wait()

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Raises NotImplementedError; see the message."""
        raise NotImplementedError(
            "perplexity tasks need the likelihood of a whole text. A masked diffusion model only "
            "has a bound on it, which depends on how the text is cut into windows and must not be "
            "compared with the exact figures of other models: take tasks that generate or that "
            "choose between answers"
        )
