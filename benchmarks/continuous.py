"""What is saved when finished rows make room: one batch with waiting prompts beside many batches.

Both decode the same problems with the same number of rows at a time, in the same order, and give
the same tokens, which is checked. Passes and columns are counted; times are taken in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dllm
from benchmarks.machine import machine, ratio, rounds, write
from dllm.eval.tasks import find_task

_METHODS = (("fixed_quota", "none"), ("threshold:0.95", "none"), ("threshold:0.95", "dual"))
_COUNTED = ("num_forwards", "rows_fed", "tokens_fed", "flops", "row_forwards")


def main() -> None:
    """Measures every method and writes the record."""
    chosen = _arguments()
    model = dllm.load("tiny")
    prompts = [problem.given for problem in find_task("arithmetic").take(chosen.limit)]
    measured = [
        measure(model, prompts, chosen, {"scheduler": scheduler, "cache": cache})
        for scheduler, cache in _METHODS
    ]
    asked = {"prompts": len(prompts), "rows": chosen.batch_size, "new_tokens": chosen.new_tokens}
    write({"machine": machine(model.device), **asked, "methods": measured}, chosen.output)


def measure(
    model: dllm.HostedModel, prompts: Sequence[Any], chosen: Any, method: dict[str, str]
) -> dict[str, Any]:
    """Returns what one method costs both ways, and the ratios of waiting to batches."""
    size = chosen.batch_size
    options: dict[str, Any] = {"max_new_tokens": chosen.new_tokens, "block_length": 16, **method}

    def in_batches() -> list[dllm.GenerationOutput]:
        starts = range(0, len(prompts), size)
        return [dllm.generate(model, list(prompts[s : s + size]), **options) for s in starts]

    def continuous() -> list[dllm.GenerationOutput]:
        return [dllm.generate(model, list(prompts), batch_size=size, **options)]

    apart, together = in_batches(), continuous()
    assert _texts(apart) == _texts(together)
    before, after = _sums(apart), _sums(together)
    taken = rounds([in_batches, continuous], chosen.repeats, model.device)
    costs = {name: round(after[name] / before[name], 3) for name in _COUNTED[:-1]}
    return {
        **method,
        "batches": before,
        "continuous": after,
        "ratio": {**costs, "seconds": round(ratio(taken[1], taken[0]), 3)},
        "useful": {  # rows that had something to commit, of those that were fed
            "batches": round(before["row_forwards"] / before["rows_fed"], 3),
            "continuous": round(after["row_forwards"] / after["rows_fed"], 3),
        },
    }


def _texts(outs: Sequence[dllm.GenerationOutput]) -> list[str]:
    return [text for out in outs for text in out.texts or ()]


def _sums(outs: Sequence[dllm.GenerationOutput]) -> dict[str, int]:
    totals = dict.fromkeys(_COUNTED, 0)
    for out in outs:
        for name in _COUNTED[:-1]:
            totals[name] += getattr(out.metrics, name)
        totals["row_forwards"] += sum(row.row_forwards for row in out.metrics.rows)
    return totals


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=200, help="problems")
    parser.add_argument("--batch-size", type=int, default=16, help="rows decoded at a time")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of timing")
    parser.add_argument("--output", type=Path, help="file for the record; else stdout")
    return parser.parse_args()


if __name__ == "__main__":
    main()
