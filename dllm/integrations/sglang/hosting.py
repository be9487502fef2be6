"""Which schedulers an engine can host that hands over the logits of one block: no others do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dllm.integrations.sglang.block import Hosted, NotHostedError
from dllm.models.config import ModelSpec
from dllm.schedulers import Needs, Scheduler, registry
from dllm.state.carried import State

_SMALL = 16  # tokens of the vocabulary that a scheduler is tried with, unless it names larger ids
_MANY = 4  # times as many columns as a block has


def algorithm_name(scheduler: str) -> str:
    """Returns what SGLang calls the algorithm that a scheduler becomes: "DllmFixedQuota"."""
    return "Dllm" + "".join(word.capitalize() for word in scheduler.split("_"))


def hosted_of(name: str, options: Mapping[str, Any], mask_token_id: int, block: int) -> Hosted:
    """Returns a scheduler with options, hosted; raises ValueError that says why it cannot be.

    To the scheduler each block of `block` columns is a canvas: its option `steps` counts the
    forwards of one block.
    """
    scheduler = registry.create({"name": name, **options})
    if (reason := reason_against(scheduler, block)) is not None:
        raise NotHostedError(
            f"SGLang cannot host the scheduler {name!r} ({algorithm_name(name)}): {reason}. "
            "dllm.generate and `dllm serve` run it"
        ) from reason
    return Hosted(scheduler, mask_token_id, block)


def reason_against(scheduler: Scheduler, block: int) -> ValueError | None:
    """Returns why an engine cannot host a scheduler, read off the scheduler itself; None: it can.

    Off its needs, its checks of models and sizes, and off what it asks for and decides in a block
    of random logits. NotHostedError where the engine lacks something; else other options may do.
    """
    if (reason := _beyond(scheduler.needs(block, block), block)) is not None:
        return NotHostedError(reason)
    ids = [token for tokens in scheduler.token_ids().values() for token in tokens]
    vocab_size = max([_SMALL, *(token + 2 for token in ids)])
    try:
        scheduler.check(1, block)
        _try(scheduler, vocab_size, block)
        scheduler.check_model(_spec(vocab_size, block))
    except ValueError as error:
        return error
    return None


def _beyond(needs: Needs, block: int) -> str | None:
    """Returns what of some needs is beyond the logits of one block."""
    reasons = {
        "it reads or commits in the whole row, and the engine gives logits of one block": (
            needs.whole_row
        ),
        "it looks at columns behind the block, of which the engine gives no logits": (
            needs.width(block, block) > block
        ),
        "it reads each column a second time without itself, and the engine feeds a block once": (
            needs.shadow
        ),
        "it compares several drafts of a row in one forward, and the engine has one": (
            needs.num_variants > 1
        ),
        "it cuts rows off, whose length is the engine's": needs.shortens,
        "its gap grows and shrinks, and the engine's rows keep their length": needs.room > 0,
    }
    return next((reason for reason, wanted in reasons.items() if wanted), None)


def _spec(vocab_size: int, block: int) -> ModelSpec:
    """Returns what is known of the models that the engine hosts: block-causal, with a mask."""
    return ModelSpec(
        vocab_size=vocab_size,
        max_length=block,
        mask_token_id=vocab_size - 1,
        eos_token_ids=(0,),
        pad_token_id=0,
        attention="block_causal",
        block_length=block,
    )


def _try(scheduler: Scheduler, vocab_size: int, block: int) -> None:
    """Fills blocks of random logits; raises ValueError where that asks for too much.

    Blocks of many columns too: there a step has the most to choose from, and what is remembered
    shows.
    """
    mask, source = vocab_size - 1, torch.Generator().manual_seed(0)
    for width in (block, _MANY * block):
        hosted = Hosted(scheduler, mask, width)
        drawn = [torch.randn(1, width, vocab_size, generator=source) * 3 for _ in range(2)]
        first = _filled(hosted, drawn[0], None)
        alone, after = (_filled(hosted, drawn[1], state) for state in (None, first[-1][1]))
        if [tokens.tolist() for tokens, _ in alone] != [tokens.tolist() for tokens, _ in after]:
            raise NotHostedError(
                "it remembers earlier blocks of the row, and the engine forgets a block that is "
                "done"
            )
        if not _fits(scheduler, _MANY * block):
            return


def _fits(scheduler: Scheduler, block: int) -> bool:
    """Whether a scheduler takes blocks of so many columns."""
    try:
        scheduler.check(1, block)
    except ValueError:
        return False
    return True


def _filled(hosted: Hosted, logits: Tensor, state: State | None) -> list[tuple[Tensor, State]]:
    """Returns tokens and state after each step of a block; `state`: of a block before it.

    Each step turns the columns' logits round by one, so that they are others for every column.
    """
    _, block, vocab_size = logits.shape
    tokens, steps = torch.full((1, block), vocab_size - 1), []
    blocks = hosted.begin(tokens, tokens < 0, logits)
    blocks = blocks if state is None else replace(blocks, state=state)
    for number in range(most_steps(hosted.scheduler, block)):
        tokens, done, blocks = hosted.step(tokens, logits.roll(number, 1), blocks)
        steps.append((tokens, blocks.state))
        if bool(done):
            return steps
    raise NotHostedError(f"it leaves a block of {block} columns open whatever forwards it gets")


def most_steps(scheduler: Scheduler, block: int) -> int:
    """Returns the forwards that a block takes at most, with the one that stores its tokens."""
    return block + 1 + (scheduler.revision_limit(block) if scheduler.can_revise else 0)
