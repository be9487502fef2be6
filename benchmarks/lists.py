"""How near the default comes to the best `batch_size` of a list, and what mixed lengths cost.

    python -m benchmarks.lists --threads 1

Word problems as they come are decoded with the default and with a ladder of hand-picked sizes;
prompts and answers of mixed lengths are decoded with the default and all in one batch. Times are
taken in turn, and every way gives the same tokens, which is checked. One thread of a CPU is
measured in the seconds that it worked, so that what else the machine does counts little.

How long it takes: a way of 1,000 problems 15 to 21 s, seven ways a cache, and a round more than
`--repeats` says; `--caches prefix` alone took nine minutes.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from functools import partial
from time import perf_counter, process_time
from typing import Annotated, Any
from unittest import mock

import torch
import typer

import dllm
from benchmarks.machine import machine, rounds, write
from benchmarks.options import Output, Repeats, Threads
from dllm.decoding import seats
from dllm.eval.tasks import find_task

LADDER = (4, 8, 16, 32, 64, 128)
SEED = 0


def main(
    problems: Annotated[int, typer.Option(help="Word problems.")] = 1000,
    uneven: Annotated[int, typer.Option(help="Rows of mixed lengths.")] = 256,
    caches: Annotated[str, typer.Option(help="Separated by commas.")] = "none,prefix,dual",
    repeats: Repeats = 2,
    threads: Threads = 1,
    output: Output = None,
) -> None:
    """Measures the embedded model on lists."""
    torch.set_num_threads(threads)
    model = dllm.load("tiny")
    texts = [problem.prompt for problem in find_task("arithmetic").take(problems)]
    mixed = mixed_prompts(texts, uneven)
    named = caches.split(",")
    record = {
        "machine": machine(model.device),
        "problems": [even_rows(model, texts, cache, repeats) for cache in named],
        "uneven": [uneven_rows(model, mixed, cache, repeats) for cache in named],
    }
    write(record, output)


def even_rows(
    model: dllm.HostedModel, texts: Sequence[Any], cache: str, repeats: int
) -> dict[str, Any]:
    """Returns what word problems take by default, beside the best of a ladder of sizes."""
    ladder = [size for size in LADDER if size < len(texts)]
    timed = measured(model, texts, cache, [None, *ladder], repeats)
    best = min(ladder, key=lambda size: statistics.median(timed[size]["seconds"]))
    return {"cache": cache, "best": best, **compared(timed[None], timed[best]), "ways": timed}


def uneven_rows(
    model: dllm.HostedModel, prompts: Sequence[Any], cache: str, repeats: int
) -> dict[str, Any]:
    """Returns how much longer mixed lengths take in one batch than by default."""
    timed = measured(model, prompts, cache, [None, len(prompts)], repeats)
    return {"cache": cache, **compared(timed[len(prompts)], timed[None]), "ways": timed}


def measured(
    model: dllm.HostedModel,
    prompts: Sequence[Any],
    cache: str,
    sizes: Sequence[int | None],
    repeats: int,
) -> dict[int | None, dict[str, Any]]:
    """Returns seconds and counts of a list by the rows that are decoded at a time, None: chosen."""
    last: dict[int | None, dllm.GenerationOutput] = {}

    def work(size: int | None) -> None:
        rows = len(prompts) if size == len(prompts) else seats.FEW
        with mock.patch.object(seats, "FEW", rows):  # few prompts are one batch: here all of them
            last[size] = dllm.generate(
                model, list(prompts), cache=cache, batch_size=size, seed=SEED
            )

    works = [partial(work, size) for size in sizes]
    alone = model.device.type == "cpu" and torch.get_num_threads() == 1
    taken = rounds(works, repeats, model.device, process_time if alone else perf_counter)
    for size in sizes:
        assert last[size].sequences == last[sizes[0]].sequences, f"batch_size={size}"
    found: dict[int | None, dict[str, Any]] = {}
    for size, seconds in zip(sizes, taken, strict=True):
        metrics = last[size].metrics
        found[size] = {
            "seconds": [round(one, 2) for one in seconds],
            "forwards": metrics.num_forwards,
            "tokens_fed": metrics.tokens_fed,
            "padding": None if metrics.padding is None else round(metrics.padding, 3),
        }
        print(cache, size, found[size], flush=True)
    return found


def compared(over: dict[str, Any], under: dict[str, Any]) -> dict[str, Any]:
    """Returns the ratio of two ways' times in each round: median, least and most."""
    ratios = [a / b for a, b in zip(over["seconds"], under["seconds"], strict=True)]
    found = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {name: round(value, 3) for name, value in found.items()}


def mixed_prompts(texts: Sequence[str], count: int) -> list[dllm.Infill]:
    """Returns prompts of 4 to 80 words with answers of 8 to 128 slots, each doubling as frequent.

    The words are those of word problems.
    """
    draw = random.Random(SEED)
    words = [word for text in texts for word in text.split()]
    rows = []
    for _ in range(count):
        length, slots = (round(least * most ** draw.random()) for least, most in ((4, 20), (8, 16)))
        begin = draw.randrange(len(words) - length)
        rows.append(dllm.Infill(" ".join(words[begin : begin + length]), slots))
    return rows


if __name__ == "__main__":
    typer.run(main)
