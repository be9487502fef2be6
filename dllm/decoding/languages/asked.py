"""From the constraints of settings to the languages that the rows of a canvas must be in."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.constraints.base import Constraint
from dllm.constraints.context_free.row import FreeLanguage, FreeRow
from dllm.constraints.context_free.spelling import TokenTexts
from dllm.constraints.grammar import Grammar
from dllm.constraints.language import OPEN
from dllm.constraints.lines import RowLanguage
from dllm.constraints.prefix import PrefixEngine, PrefixRow
from dllm.constraints.span import Compiler, ConstraintSpan
from dllm.constraints.vocabulary import Ends, vocabulary_of
from dllm.decoding.languages.constrained import Constrained, Joint
from dllm.decoding.languages.held import HeldRows
from dllm.decoding.languages.row_by_row import GrammarRow, RowByRow
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
    barred_token_ids: tuple[int, ...]  # that no row may hold, the mask among them


def languages_of(model: DenoisingModel, canvas: Canvas, asked: Asked) -> HeldRows:
    """Returns the languages of the rows of a canvas.

    Raises ValueError where a row cannot be in its language.
    """
    given, layout = asked.constraint, canvas.layout
    num_prompts = layout.num_rows // asked.samples
    if isinstance(given, list):
        check_count("constraint", len(given), num_prompts)
    each = given if isinstance(given, list) else [given] * num_prompts
    barred = asked.barred_token_ids
    compiler, grammars = Compiler(model.spec.vocab_size, barred), _Grammars(model, barred)
    held = canvas.tokens.where(~canvas.masked, OPEN).tolist()
    prompts = canvas.prompt_length.tolist()
    rows: dict[int, RowLanguage | None] = dict.fromkeys(range(layout.num_rows))
    asked_rows: dict[int, GrammarRow | None] = dict.fromkeys(range(layout.num_rows))
    for row in range(layout.num_rows):
        one, answer = each[row // asked.samples], (prompts[row], layout.kept[row])
        if one is None:
            continue
        where = f"prompt {row // asked.samples}: {one}"
        constraint, ends, (first, last) = _within(model, layout, one, answer, asked.at_eos)
        given_tokens = held[row][first:last]
        if isinstance(constraint, Grammar) and constraint.by_token:
            asked_rows[row] = grammars.row(constraint, ends, given_tokens, first, where)
        else:
            assert model.tokenizer is not None  # checked
            automaton = constraint.at(model.tokenizer, ends)
            rows[row] = compiler.row(automaton, given_tokens, first, where)
    exact = Constrained(rows, model.device, asked.joint)
    if not any(asked_rows.values()):
        return exact
    return RowByRow(asked_rows, exact if any(rows.values()) else None)


def _within(
    model: DenoisingModel,
    layout: Layout,
    one: Constraint | ConstraintSpan,
    answer: tuple[int, int],
    at_eos: AtEnd,
) -> tuple[Constraint, Ends, tuple[int, int]]:
    """Returns the constraint of a row, its ends, and the columns from and before which it is."""
    size, (first, last) = model.spec.vocab_size, answer
    if isinstance(one, ConstraintSpan):
        if at_eos != "ignore":
            raise ValueError(
                f"at_eos={at_eos!r} may end a row before its ConstraintSpan: take 'ignore'"
            )
        columns = first + one.start, min(first + one.stop, last)
        return one.constraint, Ends((), (), size), columns
    ends = layout.eos_token_ids
    padding = tuple({model.spec.pad_token_id} - {*ends, layout.mask_token_id, None})
    return one, Ends(ends, padding, size), answer


class _Grammars:
    """Makes what rows must be of grammars; what rows have in common is made once."""

    def __init__(self, model: DenoisingModel, barred: tuple[int, ...]) -> None:
        self._model, self._barred = model, frozenset(barred)
        self._made: dict[tuple[Grammar, Ends], FreeLanguage] = {}
        self._engines: dict[tuple[Grammar, Ends], PrefixEngine] = {}

    def row(
        self, grammar: Grammar, ends: Ends, given: list[int], start: int, where: str
    ) -> GrammarRow:
        """Returns a row whose columns from `start` on hold tokens, OPEN at masks.

        Raises ValueError that begins with `where` if no filling of the masks is found.
        """
        if (grammar, ends) not in self._made:
            assert self._model.tokenizer is not None  # checked
            spellings = vocabulary_of(self._model.tokenizer).spellings
            texts = TokenTexts(spellings, ends, self._barred)
            self._made[grammar, ends] = FreeLanguage(grammar.network, texts)
        language, prefix = FreeRow(self._made[grammar, ends]), None
        if grammar.method == "prefix":
            prefix = PrefixRow(self._engine(grammar, ends, where))
        if language.complete(given) is None:
            raise ValueError(f"{where} {_reason(language, given)}")
        return GrammarRow(language, start, start + len(given), prefix)

    def _engine(self, grammar: Grammar, ends: Ends, where: str) -> PrefixEngine:
        """Returns llguidance's engine of a grammar; raises ValueError that begins with `where`."""
        if (grammar, ends) not in self._engines:
            if grammar.start != "start":
                raise ValueError(
                    f"{where}: llguidance begins with the rule start, not {grammar.start!r}: "
                    "rename it, or take method='emptiness'"
                )
            texts, size = self._made[grammar, ends].texts, self._model.spec.vocab_size
            try:
                self._engines[grammar, ends] = PrefixEngine(grammar.text, texts, size)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        return self._engines[grammar, ends]


def _reason(row: FreeRow, given: list[int]) -> str:
    """Returns why no filling of a row was found."""
    shortest = row.language.shortest
    if shortest is None:
        return "accepts no text of bytes that are tokens by themselves, which its method needs"
    if any(token != OPEN for token in given):
        return "has no filling of the gaps that was found, of one byte a slot: give other lengths"
    if shortest > len(given):
        return (
            f"takes {shortest} bytes at least, and there are {len(given)} slots for it: give "
            f"max_new_tokens={shortest} or more"
        )
    return f"has no text of exactly {len(given)} bytes, and no end may stand behind a shorter one"


def check_count(name: str, given: int, num_rows: int) -> None:
    """Raises ValueError unless there is one of something for each prompt."""
    if given != num_rows:
        raise ValueError(
            f"{given} {name}s were given for {num_rows} prompts: one a prompt is needed"
        )
