"""A canvas and the tokens that each slot may hold under a constraint, as a picture.

    python -m benchmarks.allowed --output docs/figures/allowed.svg

Decodes a question with the embedded model and draws the canvas before each forward: what stands
in a slot, or how many tokens and which may still come there. The SVG fetches nothing and follows
the reader's light or dark mode.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

import dllm
from benchmarks import picture
from benchmarks.machine import machine
from dllm.constraints import Constraint, Ends, Regex
from dllm.constraints.engine import Tables
from dllm.constraints.language import OPEN, language_of
from dllm.constraints.lines import RowLanguage

QUESTION = "zoe has 62 eggs. zoe sells 17. how many eggs does zoe have?"
PATTERN = "[0-9]{1,3}[-+][0-9]{1,3}=[0-9]{1,3}; #### [0-9]{1,3}"
CELL, HEIGHT, GAP, MARGIN, TOP = 54, 44, 4, 12, 60  # pixels
NAMED = 4  # tokens of a slot that are written out, if there are no more
HUES = (262, 205, 150, 62, 22)  # of the forwards, degrees
STYLE = f"""{picture.STYLE}
.small {{ font-size: 11px; fill: var(--faint); }}
.slot text {{ text-anchor: middle; }}
.open rect {{ fill: var(--cell); stroke: var(--line); }}
.one rect {{ fill: var(--cell); stroke: var(--ink); stroke-width: 1.5; }}
"""


@dataclass(frozen=True)
class Slot:
    """What a slot holds, or may hold."""

    token: str | None  # None: a mask
    allowed: tuple[str, ...] = ()  # of a mask
    forward: int = 0  # after which the token stands there


def canvases(
    model: dllm.HostedModel, question: str, constraint: Constraint, num_slots: int, scheduler: str
) -> list[list[Slot]]:
    """Returns the slots before each forward and after the last, of an answer in one block."""
    running = dllm.stream(
        model,
        question,
        constraint=constraint,
        scheduler=scheduler,
        max_new_tokens=num_slots,
        block_length=num_slots,
        at_eos="ignore",
    )
    states = [torch.full((num_slots,), OPEN)]
    for event in running:
        states.append(
            event.tokens[0].masked_fill(event.tokens[0] == model.spec.mask_token_id, OPEN)
        )
    since = [min(n for n, one in enumerate(states) if one[slot] >= 0) for slot in range(num_slots)]
    return [
        [
            Slot(None, names)
            if token == OPEN
            else Slot(_written(model, token), forward=since[place])
            for place, (token, names) in enumerate(zip(state.tolist(), sets, strict=True))
        ]
        for state in states
        for sets in [_allowed(model, constraint, state)]
    ]


def _allowed(
    model: dllm.HostedModel, constraint: Constraint, canvas: torch.Tensor
) -> list[tuple[str, ...]]:
    """Returns the tokens that each slot may hold if no other is written."""
    spec = model.spec
    assert model.tokenizer is not None
    automaton = constraint.at(model.tokenizer, Ends(spec.eos_token_ids, (), spec.vocab_size))
    language = language_of(automaton, spec.vocab_size, (spec.mask_token_id,))
    size = len(canvas)
    row = RowLanguage(language, 0, size, language.tails([OPEN] * size))
    tables = Tables([row], torch.device("cpu"))
    columns, masked = torch.arange(size)[None], (canvas == OPEN)[None]
    segment = tables.segment(tables.first, canvas.clamp(min=0)[None], columns, masked)
    allowed = tables.allowed(tables.reach(segment))[0]
    tokens = allowed.gather(1, tables.classes[:1].expand(size, -1))
    return [
        tuple(_written(model, token) for token in one.nonzero()[:, 0].tolist()) for one in tokens
    ]


def _written(model: dllm.HostedModel, token: int) -> str:
    if token in model.spec.eos_token_ids:
        return "end"
    assert model.tokenizer is not None
    text = str(model.tokenizer.decode([token]))
    return text.replace(" ", "\u2423")


def draw(states: list[list[Slot]], question: str, pattern: str, about: str) -> str:
    """Returns the SVG: a line for each canvas, a cell for each slot."""
    size = len(states[0])
    width = 2 * MARGIN + size * (CELL + GAP) - GAP
    height = TOP + len(states) * (HEIGHT + 26)
    forwards = len(states) - 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>A canvas of {size} slots under a regex, filled in {forwards} forwards</title>",
        f"<desc>{escape(about)}</desc>",
        f"<style>{STYLE}</style>",
        f'<text x="{MARGIN}" y="24" class="faint">{escape(question)}</text>',
        f'<text x="{MARGIN}" y="44">{escape(pattern)}</text>',
    ]
    for number, slots in enumerate(states):
        y = TOP + number * (HEIGHT + 26)
        parts.append(
            f'<text x="{MARGIN}" y="{y + 10}" class="small">{_when(number, states)}</text>'
        )
        for place, slot in enumerate(slots):
            parts += _cell(slot, MARGIN + place * (CELL + GAP), y + 16)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _when(number: int, states: list[list[Slot]]) -> str:
    """Returns the words above a canvas."""
    masks = sum(slot.token is None for slot in states[number])
    counted = f"{masks} {'mask' if masks == 1 else 'masks'}"
    if not number:
        return f"before the first forward: {counted}, each with how many tokens it may become"
    return f"after forward {number}: {counted}"


def _cell(slot: Slot, x: int, y: int) -> Iterator[str]:
    """Yields the box of a slot with its text."""
    box = f'<rect x="{x}" y="{y}" width="{CELL}" height="{HEIGHT}" rx="4"'
    middle = f'x="{x + CELL / 2:g}"'
    if slot.token is not None:
        hue = HUES[(slot.forward - 1) % len(HUES)]
        look = f'style="fill: hsl({hue} 70% var(--light)); stroke: hsl({hue} 55% 55%)"'
        yield f'<g class="slot">{box} {look}/>'
        yield f'<text {middle} y="{y + 27}">{escape(slot.token)}</text></g>'
        return
    kind, count = ("one" if len(slot.allowed) == 1 else "open"), len(slot.allowed)
    named = " ".join(slot.allowed) if count <= NAMED else f"{slot.allowed[0]} \u2026"
    yield f'<g class="slot {kind}">{box}/>'
    yield f'<text {middle} y="{y + 19}" class="faint">{count}</text>'
    yield f'<text {middle} y="{y + 35}" class="small">{escape(named)}</text></g>'


def main() -> None:
    """Decodes and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--pattern", default=PATTERN)
    parser.add_argument("--slots", type=int, default=14)
    parser.add_argument("--scheduler", default="threshold:0.97")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/allowed.svg"))
    options = parser.parse_args()
    model = dllm.load("tiny")
    states = canvases(
        model, options.question, Regex(options.pattern), options.slots, options.scheduler
    )
    made = machine(model.device)
    about = "; ".join(str(made[key]) for key in ("command", "commit", "device", "torch", "time"))
    drawn = draw(states, options.question, options.pattern, about)
    options.output.write_text(drawn, encoding="utf-8")
    text = "".join(slot.token or "" for slot in states[-1])
    print(f"{options.output}: {text!r} in {len(states) - 1} forwards")


if __name__ == "__main__":
    main()
