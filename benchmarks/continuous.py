"""What is saved when finished rows make room: rows that come and go beside batches.

The same problems are decoded with the same number of rows at a time in four ways, which give the
same tokens, and that is checked: batches one after the other that stay as they are until their last
row is finished, in the order of the task and by length; one call with `batch_size`; and one as an
evaluation and a file of prompts make it. Passes and columns are counted; with `--repeats` the
times of batches and `batch_size` are taken in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dllm
from benchmarks.machine import machine, ratio, rounds, write
from dllm.decoding.seats import FEW
from dllm.eval.tasks import find_task
from dllm.generate import Stream
from dllm.models.loading.tokenizer import encode_text
from dllm.settings import resolve

_METHODS = (
    "fixed_quota none",
    "fixed_quota dual",
    "threshold:0.95 none",
    "threshold:0.95 dual",
    "threshold:0.95 sparse",
    "threshold:0.95 prefix",
    "threshold:0.95 dkv",
    "threshold:0.95 window_diffusion",
)
_COUNTED = ("num_forwards", "rows_fed", "tokens_fed", "flops", "row_forwards", "padding")
_COMPARED = _COUNTED[:4]

Way = Callable[[], "list[dllm.GenerationOutput]"]


def main() -> None:
    """Measures every method and writes the record."""
    chosen = _arguments()
    model = dllm.load("tiny")
    prompts = [problem.given for problem in find_task("arithmetic").take(chosen.limit)]
    measured = []
    for method in chosen.methods.split(","):
        scheduler, cache = method.split()
        measured.append(measure(model, prompts, chosen, {"scheduler": scheduler, "cache": cache}))
        print(measured[-1], flush=True)
    asked = {"prompts": len(prompts), "rows": chosen.batch_size, "new_tokens": chosen.new_tokens}
    write({"machine": machine(model.device), **asked, "methods": measured}, chosen.output)


def measure(
    model: dllm.HostedModel, prompts: Sequence[Any], chosen: Any, method: dict[str, str]
) -> dict[str, Any]:
    """Returns what one method costs each way, and ratios to batches in the order of the task."""
    ways = ways_of(model, prompts, chosen, method)
    outs = {name: way() for name, way in ways.items()}
    texts = _texts(outs["batches"])
    assert texts == _texts(outs["continuous"]) == _texts(outs["evaluation"])
    assert sorted(texts) == sorted(_texts(outs["sorted"]))
    sums = {name: _sums(out) for name, out in outs.items()}
    found: dict[str, Any] = {**method, **sums}
    for name in ("sorted", "continuous", "evaluation"):
        before = sums["batches"]
        found[f"{name}_ratio"] = {one: round(sums[name][one] / before[one], 3) for one in _COMPARED}
    # Rows that had something to commit, of those that were fed.
    found["useful"] = {
        name: round(one["row_forwards"] / one["rows_fed"], 3) for name, one in sums.items()
    }
    if chosen.repeats:
        timed = [ways["batches"], ways["continuous"]]
        taken = rounds(timed, chosen.repeats, model.device)
        found["seconds_ratio"] = round(ratio(taken[1], taken[0]), 3)
    return found


def ways_of(
    model: dllm.HostedModel, prompts: Sequence[Any], chosen: Any, method: dict[str, str]
) -> dict[str, Way]:
    """Returns what decodes the prompts, by name."""
    size = chosen.batch_size
    if size > FEW:
        raise ValueError(f"--batch-size {size}: batches of at most {FEW} stay as they are")
    options: dict[str, Any] = {"max_new_tokens": chosen.new_tokens, "block_length": 16, **method}

    def in_batches(some: Sequence[Any]) -> list[dllm.GenerationOutput]:
        starts = range(0, len(some), size)
        return [dllm.generate(model, list(some[s : s + size]), **options) for s in starts]

    def evaluation() -> list[dllm.GenerationOutput]:
        settings = resolve(model.defaults, None, options)
        running = Stream(model, list(prompts), settings, bound=size)
        for _ in running:
            pass
        return [running.output]

    by_length = sorted(
        prompts, key=lambda one: len(encode_text(model.tokenizer, one, special=True))
    )
    return {
        "batches": lambda: in_batches(prompts),
        "sorted": lambda: in_batches(by_length),
        "continuous": lambda: [dllm.generate(model, list(prompts), batch_size=size, **options)],
        "evaluation": evaluation,
    }


def _texts(outs: Sequence[dllm.GenerationOutput]) -> list[str]:
    return [text for out in outs for text in out.texts or ()]


def _sums(outs: Sequence[dllm.GenerationOutput]) -> dict[str, Any]:
    totals: dict[str, Any] = dict.fromkeys(_COUNTED, 0)
    needed = 0
    for out in outs:
        for name in _COMPARED:
            totals[name] += getattr(out.metrics, name)
        totals["row_forwards"] += sum(row.row_forwards for row in out.metrics.rows)
        needed += out.metrics.tokens_needed or 0
    totals["padding"] = round(1 - needed / totals["tokens_fed"], 3)
    return totals


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=200, help="problems")
    parser.add_argument("--batch-size", type=int, default=16, help="rows decoded at a time")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=0, help="rounds of timing")
    parser.add_argument("--methods", default=",".join(_METHODS), help="scheduler, space, cache")
    parser.add_argument("--output", type=Path, help="file for the record; else stdout")
    return parser.parse_args()


if __name__ == "__main__":
    main()
