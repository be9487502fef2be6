"""How many problems are decoded at a time where nobody says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dllm.cache import registry
from dllm.cli.defaults import ROWS
from dllm.constraints.template import AUTO, CAL, Lengths
from dllm.decoding.memory_limits import Extent, NotEnoughMemoryError, rows_that_fit
from dllm.eval.tasks.task import Problem
from dllm.infilling.cal import LENGTHS
from dllm.models.model import DenoisingModel
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings

_LOG = logging.getLogger(__name__)

_TEMPLATE = 64  # tokens that a chat template may add to a prompt


def choose_rows(
    asked: int | None, model: DenoisingModel, settings: Settings, problems: Sequence[Problem]
) -> int:
    """Returns as many rows as asked for; None: up to `ROWS`, fewer where by estimate no more fit.

    It decides no answer. Raises NotEnoughMemoryError where not even one row of the longest prompt
    does.
    """
    if asked is not None or model.tokenizer is None or not problems:
        return ROWS if asked is None else asked
    longest = max(problems, key=lambda problem: len(_fixed(problem)))
    num_tokens = len(model.tokenizer(_fixed(longest))["input_ids"]) + _TEMPLATE
    most = max(_slots(problem, settings) for problem in problems)
    columns = min(num_tokens + most, model.spec.max_length)
    width = settings.block_length or model.spec.block_length or DEFAULT_BLOCK_LENGTH
    uses_store = registry.create(settings.cache).uses_store
    rows = rows_that_fit(model, Extent(columns, width, uses_store, settings.temperature > 0))
    if rows is None or rows >= ROWS:
        return ROWS
    if rows < 1:
        raise NotEnoughMemoryError(
            f"by estimate not even one row of {columns} columns fits into what is left beside "
            f"{model.name!r}: give fewer --max-new-tokens, a narrower --dtype, --cache none, or "
            "--batch-size 1 to try all the same"
        )
    _LOG.warning("%d problems are decoded at a time: more do not fit by estimate", rows)
    return rows


def _fixed(problem: Problem) -> str:
    """Returns the text of a problem's row that is not generated."""
    parts = () if problem.template is None else problem.template.parts
    return problem.prompt + "".join(part for part in parts if isinstance(part, str))


def _slots(problem: Problem, settings: Settings) -> int:
    """Returns the most tokens that are generated for a problem."""
    if problem.template is None:
        return settings.max_new_tokens
    lengths = (hole.tokens for hole in problem.template.holes)
    return sum(one if isinstance(one, int) else max(_several(one)) for one in lengths)


def _several(lengths: Lengths | None) -> Sequence[int]:
    if lengths == CAL:
        return LENGTHS
    return AUTO if lengths is None or isinstance(lengths, str | int) else lengths
