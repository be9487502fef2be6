"""`dllm advise`: where a decoding step is bound, and what cache, verifier and batch change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Annotated

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from dllm.advice import FORMULAS, Advice, Bench, Figures, Network, Workload, assumed, measure
from dllm.advice import advise as advice_on
from dllm.cli import options
from dllm.cli.shown import Terminal, say
from dllm.compatible import caches_of
from dllm.doctor.checkpoint import LocalCheckpoint
from dllm.models.loading.folder import Source
from dllm.models.loading.weights import parse_device, parse_dtype
from dllm.settings import DEFAULT_BLOCK_LENGTH


def advise(
    model: Annotated[str, Argument(help='"tiny", a checkpoint folder or a downloaded hub id.')],
    prompt_length: Annotated[int, Option(min=1, max=2**17, help="Tokens of a prompt.")] = 128,
    answer_length: Annotated[int, Option(min=1, max=2**17, help="Slots of an answer.")] = 128,
    block_length: options.Block = None,
    batch: Annotated[int, Option(min=1, max=2**16, help="Rows decoded together.")] = 1,
    tokens_per_step: Annotated[
        int, Option(min=1, max=2**20, help="Tokens that a step commits in a row.")
    ] = 1,
    bandwidth: Annotated[
        float | None,
        Option(min=1e-3, max=1e9, help="Of the memory, GB/s.", show_default="assumed"),
    ] = None,
    rate: Annotated[
        float | None,
        Option(min=1e-3, max=1e9, help="Of large products, GFLOP/s.", show_default="assumed"),
    ] = None,
    timed: Annotated[
        bool, Option("--measure", help="Time this machine for some seconds instead.")
    ] = False,
    kv_int8: Annotated[
        bool, Option("--kv-int8", help="Keys and values are stored in 8 bits (speed 'kv_int8').")
    ] = False,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Says where a decoding step is bound, and what cache, verifier and batch change.

    dllm advise tiny --measure
    """
    if timed and (bandwidth is not None or rate is not None):
        raise ValueError("--measure finds what --bandwidth and --rate say: give one or the other")
    checkpoint = _checkpoint(model, revision)
    where = parse_device(device)
    weights = checkpoint.dtype if dtype is None else parse_dtype(dtype)
    network = Network(checkpoint.network, weights.itemsize, kv_int8)
    usual = checkpoint.spec.block_length or min(DEFAULT_BLOCK_LENGTH, answer_length)
    block = usual if block_length is None else block_length
    asked = Workload(prompt_length, answer_length, block, batch, tokens_per_step)
    _check_length(checkpoint, asked)
    figures = assumed(where.type, bandwidth, rate)
    if timed:
        say("times this machine for some seconds")
        figures = measure(Bench(replace(network, rounds_keys=False), weights, where), asked)
    serving = [name for name, reason in caches_of(checkpoint.hosted()).items() if not reason]
    advice = advice_on(network, asked, figures, serving)
    if as_json:
        record = {"model": model, "bound": advice.bound, "balance": advice.balance}
        print(json.dumps({**record, **asdict(advice), "formulas": dict(FORMULAS)}))
    else:
        _show(Terminal(), model, advice)


def _checkpoint(model: str, revision: str | None) -> LocalCheckpoint:
    checkpoint = LocalCheckpoint(model, Source(revision))
    if checkpoint.is_foreign:
        raise ValueError(
            f"{model}: transformers' own class runs it, whose passes are not counted; "
            "`dllm eval` measures it"
        )
    return checkpoint


def _check_length(checkpoint: LocalCheckpoint, workload: Workload) -> None:
    longest = checkpoint.spec.max_length
    if workload.num_columns > longest:
        raise ValueError(
            f"prompt_length={workload.prompt_length} and answer_length={workload.answer_length} "
            f"are more than the {longest} tokens of the model"
        )


def _show(console: Terminal, model: str, advice: Advice) -> None:
    """Prints all of it, each number behind its formula."""
    for line in (*_figures(advice.figures), *_bound(model, advice)):
        console.print(Text(line))
    for table in (_parts(advice), _caches(advice), _verifiers(advice), _batches(advice)):
        console.print()
        console.print_table(table)
    console.print()
    for line in _autoregressive(advice):
        console.print(Text(line))


def _figures(figures: Figures) -> Iterator[str]:
    yield (
        f"machine ({figures.source}): {figures.bytes_per_second / 1e9:.3g} GB/s, "
        f"{figures.flops_per_second / 1e9:.3g} GFLOP/s"
    )
    for name, curve in (("products", figures.products), ("attention", figures.pairs)):
        if curve is not None:
            rates = ", ".join(f"{rate / 1e9:.3g} at {columns}" for columns, rate in curve.points)
            yield f"{name}, GFLOP/s at columns: {rates}"
    if figures.source == "measured":
        yield (
            f"overhead: {1e6 * figures.layer_seconds:.3g} us a layer, "
            f"{1e6 * figures.column_seconds:.3g} us a column of it, "
            f"{1e6 * figures.loop_seconds:.3g} us a pass, "
            f"{1e9 * figures.logit_seconds:.3g} ns a logit"
        )
    else:
        yield "overheads of layers and loop are not known, and 0: --measure times them"


def _bound(model: str, advice: Advice) -> Iterator[str]:
    work, step = advice.work, advice.step
    yield (
        f"{model}, cache {advice.cache}: a step feeds {step.num_rows} x {step.num_fed} columns "
        f"over {step.num_seen} keys: {work.flops:,} FLOPs, {work.num_bytes:,} bytes"
    )
    yield (
        f"bound by {advice.bound}; FLOPs / bytes = {work.flops / work.num_bytes:.3g}, of the "
        f"machine rate / bandwidth = {advice.balance:.3g}"
    )


def _parts(advice: Advice) -> Table:
    table = Table(title="a step, by what it waits for")
    for name in ("part", "ms", "share"):
        table.add_column(name, justify="left" if name == "part" else "right")
    table.add_column("formula")
    total = advice.parts.total
    for name, seconds in asdict(advice.parts).items():
        table.add_row(name, f"{1e3 * seconds:.4g}", f"{seconds / total:.0%}", FORMULAS[name])
    table.add_row("all", f"{1e3 * total:.4g}", "100%", "their sum")
    return table


def _caches(advice: Advice) -> Table:
    not_counted = ", ".join(advice.not_counted) or "none"
    table = Table(
        title="an answer: sum over its passes of count x seconds of a pass",
        caption=f"not counted, for their passes depend on tokens: {not_counted}",
    )
    table.add_column("cache")
    for name in ("s", "GFLOPs", "ms a step", "tokens a step to be as fast as autoregressive"):
        table.add_column(name, justify="left" if name.startswith("tokens") else "right")
    for one in advice.caches:
        fewest = "no number" if one.break_even is None else str(one.break_even)
        figures = f"{one.seconds:.4g}", f"{one.flops / 1e9:.4g}", f"{1e3 * one.step_seconds:.4g}"
        table.add_row(one.cache, *figures, fewest)
    return table


def _verifiers(advice: Advice) -> Table:
    table = Table(title="a verifier: seconds of a pass over n canvases of a row / of a step")
    for name in ("canvases", "pays above so many steps a pass"):
        table.add_column(name, justify="right")
    for one in advice.verifiers:
        table.add_row(str(one.num_canvases), f"{one.passes:.2f}")
    return table


def _batches(advice: Advice) -> Table:
    table = Table(title="a batch: ms of a step / rows")
    for name in ("rows", "ms a step", "ms a row"):
        table.add_column(name, justify="right")
    table.add_column("bound by")
    for one in advice.batches:
        times = f"{1e3 * one.step_seconds:.4g}", f"{1e3 * one.row_seconds:.4g}"
        table.add_row(str(one.num_rows), *times, one.bound)
    return table


def _autoregressive(advice: Advice) -> Iterator[str]:
    best, other = advice.caches[0], advice.autoregressive_seconds
    asked = advice.workload.tokens_per_step
    yield (
        f"an autoregressive model of this size: {other:.4g} s an answer (a pass over the prompt, "
        "then one of a column for each further token)"
    )
    faster, ratio = ("it", best.seconds / other) if other < best.seconds else ("this", 0.0)
    ratio = ratio or other / best.seconds
    fewest = f"from {best.break_even}" if best.break_even is not None else "at no number of"
    yield (
        f"with {asked} token(s) a step and cache {best.cache}, {faster} is {ratio:.3g} times as "
        f"fast; this model is at least as fast {fewest} tokens a step"
    )
