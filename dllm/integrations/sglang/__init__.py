"""Our schedulers as dLLM algorithms of SGLang, which finds them through its plug-in entry point.

With dllm installed beside SGLang (0.5.23 was read), `--dllm-algorithm DllmThreshold` decides by
`schedulers/threshold.py`, with the options in the file of `--dllm-algorithm-config`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from dllm.integrations.sglang.block import Carried, NotHostedError, joined
from dllm.integrations.sglang.hosting import (
    algorithm_name,
    hosted_of,
    most_steps,
    reason_against,
)
from dllm.schedulers import registry

__all__ = ["NotHostedError", "algorithm_name", "algorithms", "reasons", "register"]

log = logging.getLogger(__name__)

# Keys of the configuration file that are the engine's own.
ENGINE_OPTIONS = ("block_size", "capture_input_preparation")
# Lengths of blocks that a scheduler is tried with before a configuration is read; LLaDA2 has 32
# columns, SDAR 4, and a filter of Learn2PD serves those that it was trained on.
_BLOCKS = (16, 32, 4)


class Hosting:
    """What makes an algorithm of the engine's base class: one of our schedulers decides."""

    scheduler: ClassVar[str]  # its name

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # of the engine's base class
        given = config.algorithm_config
        options = {name: value for name, value in given.items() if name not in ENGINE_OPTIONS}
        self.hosted = hosted_of(self.scheduler, options, config.mask_id, config.block_size)

    def max_steps(self, block_size: int) -> int:
        """Returns the most forwards of a block."""
        return most_steps(self.hosted.scheduler, block_size)

    def step(self, forward_batch: Any, full_logits: Tensor, states: list[Any]) -> list[bool]:
        """Writes what a forward's logits decide into the batch; returns which blocks are done."""
        hosted, length = self.hosted, self.hosted.block_length
        tokens = forward_batch.input_ids.view(-1, length).long()
        logits = full_logits.view(len(tokens), length, -1)
        if any(state is None for state in states):
            fixed = forward_batch.dllm_prompt_mask
            fixed = tokens != hosted.mask_token_id if fixed is None else fixed
            new = hosted.begin(tokens, fixed, logits)
            states[:] = [Carried(new, n) if one is None else one for n, one in enumerate(states)]
        after, done, blocks = hosted.step(tokens, logits, joined(states))
        states[:] = [Carried(blocks, number) for number in range(len(states))]
        # In place: a captured graph reads its tokens where it read them first.
        forward_batch.input_ids.copy_(after.view(-1))
        return done.tolist()


def register() -> None:
    """Puts our algorithms into SGLang's table; those that it cannot host say why when chosen."""
    # An optional package, which calls this when it starts.
    from sglang.srt.dllm import algorithm
    from sglang.srt.dllm.algorithm.base import DllmAlgorithm

    algorithm.algo_name_to_cls.update(algorithms(DllmAlgorithm))


def reasons(names: Sequence[str] | None = None) -> dict[str, Exception | None]:
    """Returns for each scheduler why the engine cannot host it as it is; None: it can."""
    return {name: _reason(name) for name in names or registry.names()}


def _reason(name: str) -> Exception | None:
    try:
        scheduler = registry.create(name)
    except (TypeError, ValueError) as error:  # of somebody else's: it needs options
        return error
    first = reason_against(scheduler, _BLOCKS[0])
    if not isinstance(first, NotHostedError):
        return first
    return first if all(reason_against(scheduler, block) for block in _BLOCKS[1:]) else None


def algorithms(base: type) -> dict[str, type]:
    """Returns an algorithm for each scheduler, of the engine's base class, by its name there."""
    found = {}
    for scheduler, reason in reasons().items():
        name = algorithm_name(scheduler)
        parents: tuple[type, ...] = (Hosting, base)
        members: dict[str, Any] = {"scheduler": scheduler}
        if isinstance(reason, NotHostedError):  # else its options may be such that it goes
            log.info("%s is refused: %s", name, reason)
            parents, members = (base,), _refusing(scheduler)
        found[name] = type(name, parents, {"__doc__": registry.get(scheduler).__doc__, **members})
    return found


def _refusing(scheduler: str) -> dict[str, Any]:
    """Returns the members of an algorithm that cannot be chosen."""

    def refuse(self: Any, config: Any) -> None:
        hosted_of(scheduler, {}, 0, _BLOCKS[0])

    return {"__init__": refuse, "configure_server_args": classmethod(refuse)}
