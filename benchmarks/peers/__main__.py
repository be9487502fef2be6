"""Decodes with a peer's own code and with this project, in turn: the peer's time over ours.

    python -m benchmarks.peers ~/Fast-dLLM --peer fast_dllm --python ~/fast-env/bin/python

FOLDER is a checkout of NVlabs/Fast-dLLM (`fast_dllm`), ML-GSAI/LLaDA (`llada`) or
Kamichanw/d2Cache (`d2cache`), INTERPRETER a Python with the torch and transformers that the peer
wants (transformers 4.49 for the three) and what it imports besides. One random checkpoint in
LLaDA's layout is written for both. Ours is loaded with defaults, so with `speed="auto"`. In every
round each case is decoded once by us and once by the peer; tokens must be equal, else where they
differ is named and the exit status is 1.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import dllm
from benchmarks.machine import machine, write
from benchmarks.options import Block, Output, ShapeName, Threads
from benchmarks.peers.cases import CASES, Case, Lengths, first_difference, message, write_checkpoint
from benchmarks.peers.process import Peer, Place


def main(
    folder: Annotated[Path, typer.Argument(help="The peer's checkout.")],
    peer: Annotated[str, typer.Option(help="fast_dllm, llada or d2cache.")],
    python: Annotated[str, typer.Option(help="The peer's interpreter.")] = sys.executable,
    modelling: Annotated[
        Path | None, typer.Option(help="For llada: the folder of modeling_llada.py; FOLDER.")
    ] = None,
    shape: ShapeName = "50m",
    only: Annotated[
        str, typer.Option(help="The case of this name, or those with it in theirs.")
    ] = "",
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1, max=4096)] = 128,
    most: Annotated[int | None, typer.Option(help="Slots at most.", min=1, max=4096)] = None,
    block: Block = 32,
    speed: Annotated[str, typer.Option(help='Of ours: "auto", "none", "packed", ...')] = "auto",
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1, max=1000)] = 5,
    threads: Threads = 1,
    output: Output = None,
) -> None:
    """Measures every case beside a peer."""
    if peer not in CASES:
        raise typer.BadParameter(f"--peer {peer}: known are {', '.join(CASES)}")
    named = [case for case in CASES[peer] if only == case.name]
    cases = named or [case for case in CASES[peer] if only in case.name]
    if not cases:
        known = "; ".join(case.name for case in CASES[peer])
        raise typer.BadParameter(f"--only {only}: cases of {peer} are {known}")
    place, lengths = Place(peer, folder, python, modelling or folder), Lengths(prompt, block, most)
    try:
        place.check()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as checkpoint:
        write_checkpoint(shape, Path(checkpoint))
        model, taken = _loaded(checkpoint, speed)
        with Peer(place, Path(checkpoint), threads) as other:
            rows = [_measured(model, other, lengths, case, repeats) for case in cases]
    _report(f"{shape}, {threads} thread{'s' * (threads > 1)}, {peer} over ours", rows)
    theirs = {"peer": peer, "peer_commit": place.commit(), **other.versions}
    sizes = {"shape": shape, "prompt": prompt, "block": block, "speed": speed, "taken": taken}
    write({"machine": machine("cpu"), "beside": theirs, **sizes, "cases": rows}, output)
    if any(row["different"] for row in rows):
        raise typer.Exit(1)


def _loaded(checkpoint: str, speed: str) -> tuple[dllm.HostedModel, str]:
    """Returns the model of this project, and what its log says of the ways that "auto" took."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("dllm.models.speed")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        model = dllm.load(checkpoint, speed=None if speed == "none" else speed)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return model, " ".join(text.partition(": ")[2] for text in heard)


def _measured(
    model: dllm.HostedModel, other: Peer, lengths: Lengths, case: Case, repeats: int
) -> dict[str, Any]:
    """Returns times, ratios and the first difference of a case; the first round is not counted."""
    case = lengths.of(case)
    prompts = lengths.prompts(case, model.spec.vocab_size)
    line = message(case, lengths, model.spec.mask_token_id, prompts)
    taken: list[tuple[float, float]] = []
    different = ""
    for _ in range(repeats + 1):
        start = perf_counter()
        ours = dllm.generate(
            model,
            prompts,
            scheduler=case.scheduler,
            cache=case.cache,
            max_new_tokens=case.new_tokens,
            block_length=lengths.block,
            at_eos="ignore",
        )
        seconds, answer = perf_counter() - start, other.ask(line)
        taken.append((seconds, answer["seconds"]))
        different = different or first_difference(ours.sequences, answer["tokens"])
    ratios = [theirs / mine for mine, theirs in taken[1:]]
    middle = statistics.median(ratios)
    return {
        "case": case.name,
        "new_tokens": case.new_tokens,
        "forwards": ours.metrics.num_forwards,
        "ours_s": statistics.median(mine for mine, _ in taken[1:]),
        "peer_s": statistics.median(theirs for _, theirs in taken[1:]),
        "ratio": middle,
        "least": min(ratios),
        "most": max(ratios),
        "goal": case.goal,
        "reached": None if case.goal is None else middle >= case.goal,
        "different": different,
    }


def _report(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(
        "case", "ours, s", "peer, s", "ratio", "min", "max", "goal", "tokens", title=title
    )
    for row in rows:
        figures = [f"{row[name]:.2f}" for name in ("ours_s", "peer_s", "ratio", "least", "most")]
        goal = "" if row["goal"] is None else f"{row['goal']} {'' if row['reached'] else 'missed'}"
        table.add_row(row["case"], *figures, goal, row["different"] or "equal")
    Console(stderr=True).print(table)


if __name__ == "__main__":
    typer.run(main)
