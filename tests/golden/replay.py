"""Replays recorded runs of the official implementations through the public API.

    python tests/golden/replay.py --models tests/golden/models --cases tests/golden/cases

Prints a line for each method and exits with 1 if any recording is not reproduced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dllm

Case = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Where a replay left the recording."""

    case: str
    what: str


class LLaDANoise:
    """The official draws: uniform noise for the whole canvas from torch's CPU generator."""

    def __init__(self, seed: int, length: int) -> None:
        self.source = torch.Generator().manual_seed(seed)
        self.length = length

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        shape = (1, self.length, vocab_size)
        drawn = torch.rand(shape, generator=self.source, dtype=torch.float64)
        return drawn.gather(1, columns[..., None].expand(-1, -1, vocab_size))

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        return torch.rand((1, self.length), generator=self.source).gather(1, columns)


class DreamNoise(LLaDANoise):
    """Dream's `origin` draws one number for each masked column, in order."""

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        drawn = torch.rand(int(masked.sum()), generator=self.source)
        uniform = torch.ones(masked.shape)
        uniform[masked] = drawn
        return uniform


def llada(case: Case) -> dict[str, Any]:
    args = case["args"]
    random = args["remasking"] == "random"
    scheduler = {"name": "fixed_quota", "steps": args["steps"]}
    settings: dict[str, Any] = {
        "scheduler": {**scheduler, "order": "random" if random else "confidence"},
        "guidance_scale": args.get("cfg_scale", 0.0),
        "temperature": args["temperature"],
    }
    if "torch_seed" in case:
        length = len(case["prompt"]) + args["gen_length"]
        settings["noise"] = LLaDANoise(case["torch_seed"], length)
    if args.get("logits_eos_inf"):
        settings["forbidden_token_ids"] = (127,)
    if args.get("confidence_eos_eot_inf"):
        settings["deferred_token_ids"] = (127, case["eot_id"])
    return settings


def fast_dllm(case: Case) -> dict[str, Any]:
    args = case["args"]
    caches = {"prefix": "prefix", "dual": "dual"}
    cache = next((name for key, name in caches.items() if key in case["method"]), "none")
    if args.get("factor") is not None:
        scheduler = {"name": "factor", "factor": args["factor"], "last_passes": True}
    elif args.get("threshold") is not None:
        scheduler = {"name": "threshold", "threshold": args["threshold"]}
    else:
        scheduler = {"name": "fixed_quota", "steps": args["steps"]}
    return {"scheduler": scheduler, "cache": cache}


def dream(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler = {
        "name": "dream",
        "algorithm": args["alg"],
        "steps": args["steps"],
        "empty_steps": True,
    }
    settings: dict[str, Any] = {"scheduler": scheduler}
    if "torch_seed" in case:
        settings["noise"] = DreamNoise(case["torch_seed"], 0)
    return settings


def fast_dllm_dream(case: Case) -> dict[str, Any]:
    args = case["args"]
    threshold, steps = args["threshold"], args["steps"]
    return {"scheduler": {"name": "quota_threshold", "threshold": threshold, "steps": steps}}


def fast_dllm_dream_block(case: Case) -> dict[str, Any]:
    args = case["args"]
    if args["alg"] == "confidence_threshold":
        scheduler = {"name": "threshold", "threshold": args["threshold"]}
    else:
        scheduler = {"name": "dream", "steps": args["steps"], "empty_steps": True}
    name = "dual" if args["dual_cache"] else "prefix"
    return {"scheduler": scheduler, "cache": {"name": name, "first_token": "force"}}


# Recordings that are not reproduced, with the reason (README.md beside this file has more).
KNOWN_DIFFERENCES = {
    "nocache_g96_s96_th0.9": "a near tie (2.9e-5 in confidence) at step 17 goes the other way",
}

METHODS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "llada_low_confidence": llada,
    "llada_cfg": llada,
    "llada_eos_option": llada,
    "llada_random": llada,
    "llada_gumbel": llada,
    "fastdllm_generate": fast_dllm,
    "fastdllm_generate_with_prefix_cache": fast_dllm,
    "fastdllm_generate_with_dual_cache": fast_dllm,
    "dream_maskgit_plus": dream,
    "dream_topk_margin": dream,
    "dream_entropy": dream,
    "dream_origin": dream,
    "fastdllm_dream_threshold": fast_dllm_dream,
    "fastdllm_dream_block_prefix": fast_dllm_dream_block,
    "fastdllm_dream_block_dual": fast_dllm_dream_block,
}


def method_of(case: Case) -> str:
    """Returns the key of METHODS for a case, '' if its method is not replayed yet."""
    method = case["method"]
    for prefix in ("fastdllm_factor_", "fastdllm_v1_early_stop_", "fastdllm_v1_"):
        method = method.replace(prefix, "fastdllm_")
    return method if method in METHODS else ""


@cache
def load_model(path: Path, dtype: str) -> dllm.HostedModel:
    return dllm.load(path, dtype=dtype)


def replay(case: Case, models: Path) -> Difference | None:
    """Runs a case; returns how tokens, commits or forwards differ, None if they do not."""
    args = case["args"]
    new_tokens = num_new_tokens(case)
    out = dllm.generate(
        load_model(models / case["model"], case["dtype"]),
        [case["prompt"]],
        max_new_tokens=new_tokens,
        block_length=args.get("block_length", new_tokens),
        at_eos="truncate" if args.get("early_stop") else "ignore",
        statistics_dtype=torch.float64,
        **METHODS[method_of(case)](case),
    )
    # Forwards that the official loop runs on a canvas or block that is already full.
    recorded = [step for step in case["trace"] if not idle(step, case)]
    kept = range(end_of_text(case))
    commits = [sorted((p, t) for p, t in step["commits"] if p in kept) for step in recorded]
    got = [sorted(step) for step in out.trace.commits(0)]
    got += [[]] * (out.metrics.num_forwards - len(got))
    if list(out.sequences[0]) != case["final"]:
        return Difference(case["id"], f"tokens {list(out.sequences[0])} != {case['final']}")
    if got != commits:
        first = next(
            (i for i, (a, b) in enumerate(zip(got, commits, strict=False)) if a != b), None
        )
        return Difference(case["id"], f"{len(got)} forwards, {len(commits)} recorded; step {first}")
    return None


def end_of_text(case: Case) -> int:
    """Returns the length that is compared commit by commit: what follows was overwritten."""
    final, start = case["final"], len(case["prompt"])
    if not case["args"].get("early_stop") or 127 not in final[start:]:
        return len(final)
    return final.index(127, start) + 1


def idle(step: dict[str, Any], case: Case) -> bool:
    """Whether a recorded forward ran on a block (or canvas) that had no masks left."""
    past = [
        position for before in case["trace"][: step["step"]] for position, _ in before["commits"]
    ]
    if step["commits"] or not past:
        return False
    new_tokens = num_new_tokens(case)
    block = case["args"].get("block_length", new_tokens)
    start = len(case["prompt"])
    begin = start + (past[-1] - start) // block * block
    return set(range(begin, begin + block)) <= set(past)


def num_new_tokens(case: Case) -> int:
    """Returns the length of the generated region."""
    args = case["args"]
    return int(args["gen_length"] if "gen_length" in args else args["max_new_tokens"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--models", type=Path, default=here / "models")
    parser.add_argument("--cases", type=Path, default=here / "cases", help="file or folder")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how each case differs")
    options = parser.parse_args()
    files = sorted(options.cases.glob("*.json")) if options.cases.is_dir() else [options.cases]
    results: dict[str, list[Difference | None]] = defaultdict(list)
    for file in files:
        recorded = json.loads(file.read_text(encoding="utf-8"))
        for case in recorded["cases"]:
            if not method_of(case):
                results[f"{case['method']} (not implemented)"].append(
                    Difference(case["id"], "not implemented")
                )
                continue
            given = {"eot_id": recorded.get("eot_id"), **case}
            results[f"{file.stem}: {case['method']}"].append(replay(given, options.models))
    num_failed = 0
    for method, found in results.items():
        failed = [d for d in found if d is not None and d.case not in KNOWN_DIFFERENCES]
        known = [d for d in found if d is not None and d.case in KNOWN_DIFFERENCES]
        same = len(found) - len(failed) - len(known)
        print(f"{'FAILED' if failed else 'passed'}  {same}/{len(found)}  {method}")
        for difference in known:
            print(f"    known difference: {difference.case}: {KNOWN_DIFFERENCES[difference.case]}")
        for difference in failed if options.verbose else []:
            print(f"    {difference.case}: {difference.what}")
        num_failed += len(failed)
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
