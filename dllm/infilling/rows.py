"""Templates behind their prompts: of each answer a row for all the lengths that its holes may have.

Fixed parts are in the row from the beginning and are never written, and all-to-all attention lets
each hole see those behind it. Text before the first hole belongs to the prompt, as blocks are
counted from there. Parts become tokens one by one: a word that a hole's border cuts in two is not
the token that it is in running text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from dllm.constraints.base import Constraint
from dllm.constraints.language import OPEN, Language, language_of
from dllm.constraints.template import AUTO, CAL, Hole, Template
from dllm.decoding.languages.asked import check_count
from dllm.infilling.cal import LENGTHS, MOST
from dllm.infilling.gaps import Gap, Laid
from dllm.infilling.languages import automaton_of, barred_tokens
from dllm.models.config import UniformSpec
from dllm.models.loading.tokenizer import encode_text
from dllm.models.model import DenoisingModel
from dllm.prompts import Row, check_new, check_row, encode_all, end_tokens
from dllm.settings import Settings

MOST_ROWS = 64  # of an answer: one for all the lengths that its holes may have together
LONGEST = 64  # tokens that an "auto" hole with a constraint has at most

# Attention of models that do not see what stands in later blocks.
_BLIND = {
    "block_causal": "sees the blocks up to its own",
    "causal": "sees what stands before a token",
    "causal_context": "sees the blocks up to its own",
    "encoder_decoder": "sees what is committed before the open block",
}


def rows_of(model: DenoisingModel, prompts: Any, settings: Settings) -> list[Row]:
    """Returns the rows of a canvas: `n` of each prompt, and with templates those of all lengths.

    `prompts` may be None where there are templates. Raises ValueError or TypeError for what cannot
    be decoded.
    """
    template = settings.template
    if template is None:
        return [row for row in encode_all(model, prompts, settings) for _ in range(settings.n)]
    _check_model(model)
    if prompts is None:
        prompts = [[]] * (len(template) if isinstance(template, list) else 1)
    encoded = encode_all(model, prompts, settings)
    if isinstance(template, list):
        check_count("template", len(template), len(encoded))
    each = template if isinstance(template, list) else [template] * len(encoded)
    layer, rows = _Layer(model, settings), []
    for number, (row, one) in enumerate(zip(encoded, each, strict=True)):
        for sample in range(settings.n):
            laid = layer.rows(row.prompt, one, number * settings.n + sample, f"prompt {number}")
            rows += laid
        for one_row in laid:
            check_row(number, one_row, model.spec)
    return rows


def _check_model(model: DenoisingModel) -> None:
    """Raises ValueError for models that have no place for a template."""
    if isinstance(model.spec, UniformSpec):
        raise ValueError(
            f"template= keeps text behind its holes, and {model.name!r} writes whole canvases of "
            "its own behind the prompt: give the text before the hole as the prompt"
        )
    if model.tokenizer is None:
        raise ValueError(
            f"template= is about texts, and {model.name!r} has no tokenizer to spell them: load "
            "one, dllm.load(..., tokenizer=...), or give token ids with infill=True"
        )


@dataclass
class _Layer:
    """Lays templates; what several rows have in common is worked out once."""

    model: DenoisingModel
    settings: Settings
    _languages: dict[tuple[int, bool], Language] = field(default_factory=dict)

    def rows(self, prompt: Sequence[int], template: Template, answer: int, where: str) -> list[Row]:
        """Returns the rows of one answer, shorter holes first."""
        where = f"{where}: template"
        parts = self._encoded(template, bool(prompt), where)
        behind = any(isinstance(one, list) for one in _split(parts)[1])
        reason = _BLIND.get(self.model.spec.attention)
        if behind and reason is not None:
            raise ValueError(
                f"{where} has text behind a hole, which {self.model.name!r} cannot see: its "
                f"{self.model.spec.attention} attention {reason}. Put the text before the hole, "
                "or take a model of full attention"
            )
        choices = self._choices(parts, where)
        if reason is not None and prod(map(len, choices)) > 1:
            raise ValueError(
                f"{where} has holes of several lengths, which are compared by what is seen on both "
                f"sides of a token, and {self.model.name!r} {reason}: give each hole one length"
            )
        return [self._row(prompt, parts, lengths, answer) for lengths in product(*choices)]

    def _encoded(self, template: Template, follows: bool, where: str) -> list[list[int] | Hole]:
        """Returns the parts, texts in token ids and those that are empty left out."""
        parts: list[list[int] | Hole] = []
        for number, part in enumerate(template.parts):
            if isinstance(part, Hole):
                parts.append(part)
                continue
            begins = not follows and not parts and part != ""
            ids = encode_text(self.model.tokenizer, part, begins, f"{where} part {number}")
            if self.model.spec.mask_token_id in ids:
                raise ValueError(
                    f"{where} part {number} holds the mask token in {part!r}: write Hole(tokens=1)"
                )
            parts += [ids] if ids else []
        return parts

    def _choices(self, parts: Sequence[list[int] | Hole], where: str) -> list[tuple[int, ...]]:
        """Returns the lengths that each hole is tried with."""
        holes = [one for one in parts if isinstance(one, Hole)]
        if any(hole.tokens == CAL for hole in holes):
            return [self._probed(holes, where)]
        choices = []
        for number, hole in enumerate(holes):
            last = hole is parts[-1] and number == len(holes) - 1
            choices.append(self._lengths(hole, last, f"{where} hole {number}"))
        if (count := prod(map(len, choices))) > MOST_ROWS:
            shown = " x ".join(str(len(one)) for one in choices)
            raise ValueError(
                f"{where} has {shown} = {count} combinations of lengths, each a row of the batch: "
                f"at most {MOST_ROWS} are tried; give fewer lengths, such as Hole(tokens=(4, 8))"
            )
        return choices

    def _probed(self, holes: Sequence[Hole], where: str) -> tuple[int, ...]:
        """Returns the lengths that CAL probes the only hole with; raises ValueError for others."""
        wrong = {
            f"{len(holes)} holes": len(holes) > 1,
            f"the constraint {holes[0].constraint}": holes[0].constraint is not None,
        }
        for what, there in wrong.items():
            if there:
                raise ValueError(
                    f"{where} has {what}, and tokens={CAL!r} is defined for a single hole without "
                    'a constraint: give lengths, such as tokens=(4, 8, 16) or "auto"'
                )
        check_new(f"{where}: tokens={CAL!r}, up to", MOST, self.model.spec)
        return LENGTHS

    def _lengths(self, hole: Hole, last: bool, where: str) -> tuple[int, ...]:
        """Returns the lengths of one hole, without those that its constraint has no text of.

        A text that an end token may end fits the longest, so that no others need to be tried.
        """
        given = (hole.tokens,) if isinstance(hole.tokens, int) else hole.tokens
        known = tuple(sorted(given)) if isinstance(given, tuple) else ()
        for count in known:
            check_new(f"{where}: tokens", count, self.model.spec)
        fits = known or AUTO
        if hole.constraint is not None:
            fits = self._fitting(hole.constraint, last, known, where)
        if known or not last or self._endless:
            return fits if known or len(fits) <= len(AUTO) else _thinned(fits)
        return (next((count for count in fits if count >= AUTO[-1]), fits[-1]),)

    @property
    def _endless(self) -> bool:
        """Whether no text can end before its hole does."""
        ends = end_tokens(self.model.spec.eos_token_ids, self.settings.eos_token_id)
        return self.settings.forbid_eos or not ends

    def _fitting(
        self, constraint: Constraint, last: bool, known: tuple[int, ...], where: str
    ) -> tuple[int, ...]:
        """Returns the lengths that a constraint has texts of: among those known, if there are."""
        wanted = known or tuple(range(1, LONGEST + 1))
        language = self._language(constraint, last)
        accepted = language.tails([OPEN] * max(wanted))[:, language.automaton.start]
        fits = tuple(count for count in wanted if accepted[min(count, len(accepted) - 1)])
        if not fits:
            has = [count for count in range(1, len(accepted)) if accepted[count]]
            raise ValueError(f"{where}: {constraint} {_reason(known, has)}")
        return fits

    def _language(self, constraint: Constraint, last: bool) -> Language:
        key = id(constraint), last  # the template keeps it; languages of others may have its name
        if key not in self._languages:
            automaton = automaton_of(self.model, self.settings, constraint, last)
            barred = barred_tokens(self.model, self.settings, last)
            self._languages[key] = language_of(automaton, self.model.spec.vocab_size, barred)
        return self._languages[key]

    def _row(
        self,
        prompt: Sequence[int],
        parts: Sequence[list[int] | Hole],
        lengths: Sequence[int],
        answer: int,
    ) -> Row:
        lead, behind = _split(parts)
        slots: list[int] = []
        gaps: list[Gap] = []
        left = list(lengths)
        for part in behind:
            if isinstance(part, Hole):
                count = left.pop(0)
                last = not left and part is parts[-1]
                gaps.append(Gap(len(slots), len(slots) + count, part.constraint, last))
                slots += [self.model.spec.mask_token_id] * count
            else:
                slots += part
        if self.settings.too_long == "cut":  # as for prompts without a template
            room = self.model.spec.max_length - len(slots) - len(lead)
            prompt = prompt[-room:] if 0 < room < len(prompt) else prompt
        infilled = any(token != self.model.spec.mask_token_id for token in slots)
        probed = any(isinstance(one, Hole) and one.tokens == CAL for one in behind)
        laid = Laid(answer, len(lead), tuple(gaps), probed)
        return Row([*prompt, *lead], slots, infilled=infilled, laid=laid)


def _split(parts: Sequence[list[int] | Hole]) -> tuple[list[int], Sequence[list[int] | Hole]]:
    """Returns the tokens before the first hole, and the parts from there on."""
    lead: list[int] = []
    for place, part in enumerate(parts):
        if isinstance(part, Hole):
            return lead, parts[place:]
        lead += part
    raise AssertionError("every template has a hole")


def _thinned(fits: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shortest of many lengths, and those of them that any text is tried with."""
    return tuple(count for count in fits if count in (fits[0], *AUTO))


def _reason(known: Sequence[int], has: Sequence[int]) -> str:
    """Returns why a constraint fits no length of a hole; `has` are shorter ones that it fits."""
    if not known:
        return f"has no text of at most {LONGEST} tokens: give Hole(..., tokens=...)"
    there = f"it has of {', '.join(map(str, has))}" if has else "its texts have more"
    return f"has no text of exactly {' or '.join(map(str, known))} tokens; {there}"
