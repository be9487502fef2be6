"""From the constraints of settings to the languages that the rows of a canvas must be in."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.constraints.automaton import TokenAutomaton
from dllm.constraints.base import Constraint
from dllm.constraints.language import OPEN
from dllm.constraints.lines import RowLanguage
from dllm.constraints.span import Compiler, ConstraintSpan
from dllm.constraints.vocabulary import Ends
from dllm.decoding.constrained import Constrained, Joint
from dllm.models.model import DenoisingModel
from dllm.state.canvas import Canvas
from dllm.state.progress import AtEnd
from dllm.state.window import Layout


@dataclass(frozen=True)
class Asked:
    """The constraints of a call: one for all prompts or one a prompt, and how they act."""

    constraint: Constraint | ConstraintSpan | list[Constraint | ConstraintSpan | None]
    joint: Joint
    samples: int  # rows of each prompt, which follow each other
    at_eos: AtEnd
    barred_token_ids: tuple[int, ...]  # that no row may hold, beside the mask token


def languages_of(model: DenoisingModel, canvas: Canvas, asked: Asked) -> Constrained:
    """Returns the languages of the rows of a canvas.

    Raises ValueError where a row cannot be in its language.
    """
    given, layout = asked.constraint, canvas.layout
    num_prompts = layout.num_rows // asked.samples
    if isinstance(given, list):
        check_count("constraint", len(given), num_prompts)
    each = given if isinstance(given, list) else [given] * num_prompts
    barred = (layout.mask_token_id, *asked.barred_token_ids)
    compiler = Compiler(model.spec.vocab_size, barred)
    held = canvas.tokens.where(~canvas.masked, OPEN).tolist()
    prompts = canvas.prompt_length.tolist()
    rows: list[RowLanguage | None] = []
    for row in range(layout.num_rows):
        one, first, last = each[row // asked.samples], prompts[row], layout.kept[row]
        if one is None:
            rows.append(None)
            continue
        where = f"prompt {row // asked.samples}: {one}"
        automaton, first, last = _automaton(model, layout, one, (first, last), asked)
        rows.append(compiler.row(automaton, held[row][first:last], first, where))
    return Constrained(rows, model.device, asked.joint)


def _automaton(
    model: DenoisingModel,
    layout: Layout,
    one: Constraint | ConstraintSpan,
    answer: tuple[int, int],
    asked: Asked,
) -> tuple[TokenAutomaton, int, int]:
    """Returns the automaton of one row, and the columns from and before which it speaks of."""
    tokenizer, size, (first, last) = model.tokenizer, model.spec.vocab_size, answer
    assert tokenizer is not None  # checked
    if isinstance(one, ConstraintSpan):
        if asked.at_eos != "ignore":
            raise ValueError(
                f"at_eos={asked.at_eos!r} may end a row before its ConstraintSpan: take 'ignore'"
            )
        automaton = one.constraint.at(tokenizer, Ends((), (), size))
        return automaton, first + one.start, min(first + one.stop, last)
    ends = layout.eos_token_ids
    padding = tuple({model.spec.pad_token_id} - {*ends, layout.mask_token_id, None})
    return one.at(tokenizer, Ends(ends, padding, size)), first, last


def check_count(name: str, given: int, num_rows: int) -> None:
    """Raises ValueError unless there is one of something for each prompt."""
    if given != num_rows:
        raise ValueError(
            f"{given} {name}s were given for {num_rows} prompts: one a prompt is needed"
        )
