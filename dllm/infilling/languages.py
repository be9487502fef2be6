"""What the holes of templates may hold: their constraints, and where a text may end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.constraints.automaton import TokenAutomaton
from dllm.constraints.base import Constraint
from dllm.constraints.language import OPEN
from dllm.constraints.lines import RowLanguage
from dllm.constraints.span import Compiler
from dllm.constraints.vocabulary import Ends
from dllm.decoding.languages.constrained import Constrained
from dllm.decoding.languages.several import Several
from dllm.models.model import DenoisingModel
from dllm.prompts import Row, end_tokens
from dllm.settings import Settings


def automaton_of(
    model: DenoisingModel, settings: Settings, constraint: Constraint, last: bool
) -> TokenAutomaton:
    """Returns the automaton of a hole; end tokens may end the text of one that is the `last`."""
    spec, tokenizer = model.spec, model.tokenizer
    assert tokenizer is not None  # checked
    ends = end_tokens(spec.eos_token_ids, settings.eos_token_id) if last else ()
    padding = tuple({spec.pad_token_id} - {*ends, spec.mask_token_id, None}) if last else ()
    return constraint.at(tokenizer, Ends(ends, padding, spec.vocab_size))


def barred_tokens(model: DenoisingModel, settings: Settings, last: bool) -> tuple[int, ...]:
    """Returns the tokens that no hole with a constraint may hold, the mask among them.

    Those that end a text and stand behind it are in the `last` one alone, whatever text they are.
    """
    spec = model.spec
    ends = end_tokens(spec.eos_token_ids, settings.eos_token_id)
    padding = {spec.pad_token_id} - {None, *ends}
    more = () if last else (*ends, *(one for one in padding if one is not None))
    more = ends if last and settings.forbid_eos else more
    return (spec.mask_token_id, *settings.forbidden_token_ids, *more)


def holes_of(
    model: DenoisingModel, rows: Sequence[Row], settings: Settings
) -> Constrained | Several | None:
    """Returns the languages of the holes of rows; None: no hole has a constraint."""
    inner, outer = (
        Compiler(model.spec.vocab_size, barred_tokens(model, settings, last))
        for last in (False, True)
    )
    each: list[list[RowLanguage]] = []
    for row in rows:
        assert row.laid is not None
        held = []
        for number, gap in enumerate(row.laid.gaps):
            if gap.constraint is not None:
                where = f"hole {number} of a template: {gap.constraint}"
                automaton = automaton_of(model, settings, gap.constraint, gap.last)
                masks, start = [OPEN] * (gap.stop - gap.start), len(row.prompt) + gap.start
                compiler = outer if gap.last else inner
                held.append(compiler.row(automaton, masks, start, where))
        each.append(held)
    count = max(map(len, each))
    # The first hole with a constraint of each row, then the second of each, ...
    lists = [[held[n] if n < len(held) else None for held in each] for n in range(count)]
    parts = tuple(Constrained(dict(enumerate(one)), model.device, settings.joint) for one in lists)
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else Several(parts)


def first_ends(rows: Sequence[Row], device: torch.device) -> Tensor | None:
    """Returns the first column of each row (B,) int64 in which a text may end.

    None: rows have no templates, or each of them ends with its only hole.
    """
    firsts = [0 if row.laid is None else row.laid.first_end for row in rows]
    if not any(firsts):
        return None
    starts = [len(row.prompt) for row in rows]
    pairs = zip(starts, firsts, strict=True)
    return torch.tensor([start + first for start, first in pairs], device=device)
