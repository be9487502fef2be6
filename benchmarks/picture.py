"""A canvas that fills, as an animated picture: one answer of the embedded model.

    python -m benchmarks.picture --output docs/figures/canvas.svg

Decodes a question and draws what each forward committed. The SVG fetches nothing, follows the
reader's light or dark mode, and stands still, full, where animations are not wanted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from html import escape
from pathlib import Path

import dllm
from benchmarks.machine import machine
from dllm.trace import TraceRecord, record_of

QUESTION = (
    "zoe has 62 eggs. zoe shares equally among 2 people. zoe sells 17. "
    "zoe finds 62 more. zoe finds 15 more. how many eggs does zoe have?"
)
CELL, HEIGHT, GAP, MARGIN, TOP = 42, 28, 4, 12, 60  # pixels
LEAD, STEP, REST = 1.0, 0.9, 3.5  # seconds: before the first forward, of each, after the last
HUES = (262, 232, 205, 178, 150, 110, 62, 40, 22, 0)  # of the steps, degrees
STYLE = """
svg { --ink: #1f2328; --faint: #656d76; --line: #d0d7de; --cell: #f6f8fa; --light: 86%; }
@media (prefers-color-scheme: dark) {
 svg { --ink: #e6edf3; --faint: #8d96a0; --line: #3d444d; --cell: #161b22; --light: 28%; }
}
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--ink); }
.faint { fill: var(--faint); }
.mask { fill: var(--cell); stroke: var(--line); }
.cell text, .masks text { text-anchor: middle; }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; } }
"""


def draw(record: TraceRecord, block_length: int, about: str) -> str:
    """Returns the SVG: a line for each block, a cell for each slot."""
    slots = len(record.tokens) - record.prompt_length
    lines = -(-slots // block_length)
    width = 2 * MARGIN + block_length * (CELL + GAP) - GAP
    height = TOP + lines * (HEIGHT + GAP) + 36
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>A canvas of {slots} masks, filled in {record.num_steps} forwards</title>",
        f"<desc>{escape(about)}</desc>",
        f"<style>{STYLE}{''.join(_timing(record.num_steps))}</style>",
        *_question(record),
        *_cells(record, block_length),
        *_counts(record, height - 14, width - MARGIN),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _timing(steps: int) -> Iterator[str]:
    """Yields when what a step wrote appears (c), and when its count is shown (n)."""
    total = LEAD + steps * STEP + REST
    for step in range(steps + 1):
        start = 100 * (LEAD + (step - 1) * STEP) / total if step else 0.0
        end = 100 * (LEAD + step * STEP) / total
        run = f"{total:.1f}s step-end infinite"
        if step:
            hue = HUES[min(step - 1, len(HUES) - 1)]
            colours = f"fill: hsl({hue} 70% var(--light)); stroke: hsl({hue} 55% 55%)"
            yield f".c{step} rect {{ {colours} }}\n.c{step} {{ animation: c{step} {run} }}\n"
            yield f"@keyframes c{step} {{ 0% {{ opacity: 0 }} {start:.2f}% {{ opacity: 1 }} }}\n"
        last = step == steps
        yield f".n{step} {{ opacity: {int(last)}; animation: n{step} {run} }}\n"
        before = "0% { opacity: 0 } " if step else ""
        after = "" if last else f" {end:.2f}% {{ opacity: 0 }}"
        yield f"@keyframes n{step} {{ {before}{start:.2f}% {{ opacity: 1 }}{after} }}\n"


def _question(record: TraceRecord) -> Iterator[str]:
    """Yields the prompt on two lines."""
    words = "".join(record.pieces[token] for token in record.tokens[: record.prompt_length])
    words = words.replace("<bos>", "").replace("<user>", "").strip()
    half = words.rfind(" ", 0, 84)
    for y, line in ((24, words[:half]), (42, words[half + 1 :])):
        yield f'<text x="{MARGIN}" y="{y}" class="faint">{escape(line)}</text>'


def _cells(record: TraceRecord, block_length: int) -> Iterator[str]:
    """Yields every mask, and over it the token with the step that wrote it."""
    steps = {column: step + 1 for step, column, _ in record.writes}
    masks, cells = [], []
    for slot in range(len(record.tokens) - record.prompt_length):
        column = record.prompt_length + slot
        x = MARGIN + slot % block_length * (CELL + GAP)
        y = TOP + slot // block_length * (HEIGHT + GAP)
        box = f'x="{x}" y="{y}" width="{CELL}" height="{HEIGHT}" rx="4"'
        at = f'x="{x + CELL / 2:g}" y="{y + 18}"'
        masks.append(f'<rect class="mask" {box}/><text {at} class="faint">·</text>')
        if column in steps:
            token = record.tokens[column]
            special = token in record.special
            text = "end" if special else record.pieces[token].strip()
            look = ' class="faint"' if special else ""
            cells.append(
                f'<g class="cell c{steps[column]}"><rect {box}/>'
                f"<text {at}{look}>{escape(text)}</text></g>"
            )
    yield f'<g class="masks">{"".join(masks)}</g>'
    yield from cells


def _counts(record: TraceRecord, y: int, right: int) -> Iterator[str]:
    """Yields the line below for each step: forwards and tokens so far."""
    written = [0] * (record.num_steps + 1)
    for step, column, _ in record.writes:
        written[step + 1] += record.tokens[column] not in record.special
    for step in range(record.num_steps + 1):
        total = sum(written[: step + 1])
        text = f"forward {step} of {record.num_steps}: {total} tokens"
        if step == record.num_steps:
            text += f", {total / step:.1f} a forward"
        yield f'<text x="{MARGIN}" y="{y}" class="n{step}">{text}</text>'
    yield f'<text x="{right}" y="{y}" class="faint" text-anchor="end">a line is a block</text>'


def main() -> None:
    """Decodes and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--scheduler", default="threshold:0.95")
    parser.add_argument("--block-length", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/canvas.svg"))
    options = parser.parse_args()
    model = dllm.load("tiny")
    out = dllm.generate(
        model,
        [options.question],
        scheduler=options.scheduler,
        cache="dual",
        max_new_tokens=3 * options.block_length,
        block_length=options.block_length,
    )
    assert out.texts is not None
    record = record_of(out, 0, model.tokenizer)
    made = machine(model.device)
    about = "; ".join(str(made[key]) for key in ("command", "commit", "device", "torch", "time"))
    options.output.write_text(draw(record, options.block_length, about), encoding="utf-8")
    print(f"{options.output}: {out.texts[0]!r} in {record.num_steps} forwards")


if __name__ == "__main__":
    main()
