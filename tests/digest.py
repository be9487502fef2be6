"""The tokens of some hundred settings in short: what a change of the code's shape must not change.

    python -m tests.digest --write

records them anew, which only a change of what is decoded may ask for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

import dllm
from tests.support import GOLDEN
from tests.support.laws import SCHEDULERS, caches_on, grows, options_of, suited
from tests.support.models import family_model, golden_model, random_prompts

RECORD = GOLDEN / "digest.json"
FULL = ("llada_gqa", "dream_gqa")
CAUSAL = ("sdar", "fast_dllm_v2")
EXACT = ("none", "dual", "block_causal", "sub_block:4")
TYPICAL = ("fixed_quota", "threshold:0.4", "multi_block:0.4,blocks=3", "rcr")
LAST = ("wedlm:2,penalty=0.1", "wedlm:null", "threshold:0.4")
STATELESS = ("fixed_quota", "threshold:0.4", "factor:1.0", "localleap:0.7,relaxed_threshold=0.4")
VERIFIERS = ("ssd:3", "freedave:3,execution=tree", "ssd:2,execution=sequential,adaptive=true")
MORE: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 0.7, "top_p": 0.9},
    "guided": {"guidance_scale": 0.5},
    "guided, cached": {"guidance_scale": 0.5, "cache": "dual"},
    "ends": {"eos_token_id": [6, 9, 13, 29, 72, 113]},
    "truncated": {"eos_token_id": [6, 9, 13, 29, 72, 113], "at_eos": "truncate", "cache": "dual"},
    "entering": {"batch_size": 2},
    "entering, cached": {"batch_size": 2, "cache": "dual"},
    "entering, verified": {"batch_size": 2, "cache": "dual", "verifier": "ssd:3"},
    "entering, variants": {"batch_size": 2, "scheduler": "lopa:0.6,branches=3"},
}


def with_caches() -> list[tuple[Any, str]]:
    """Returns all schedulers, each with no cache and two that serve it, if any can."""
    caches = ("none", "dual", "dkv:3")
    return [(s, c) for s, c in itertools.product(SCHEDULERS, caches) if c == "none" or not grows(s)]


def settings() -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns a model's name and the settings of each case, by the case's name."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}

    def add(model: str, **given: Any) -> None:
        names = [v if isinstance(v, str) else v["name"] for v in given.values()]
        name = " | ".join([model, *names]).replace(f"{GOLDEN}/", "")
        while name in found:
            name += "'"
        found[name] = model, given

    for scheduler, cache in with_caches():
        add("llada_gqa", scheduler=scheduler, cache=cache)
    for model, scheduler in itertools.product(FULL, TYPICAL):
        for cache in caches_on(model):
            add(model, scheduler=scheduler, cache=cache)
    last = itertools.product(["wedlm"], LAST, ("none", "streaming"))
    causal = itertools.product(CAUSAL, TYPICAL, EXACT)
    for model, scheduler, cache in itertools.chain(causal, last):
        add(model, scheduler=scheduler, cache=cache)
    for model, scheduler, verifier in itertools.product(FULL, STATELESS, VERIFIERS):
        add(model, scheduler=scheduler, cache="dual", verifier=verifier)
    for scheduler, verifier in itertools.product(STATELESS[:2], VERIFIERS):
        add("sdar", scheduler=scheduler, cache="block_causal", verifier=verifier)
    for model, name in itertools.product(FULL, MORE):
        found[f"{model} | {name}"] = model, MORE[name]
    return found


def digest(model: str, given: dict[str, Any]) -> str:
    """Returns a hash of the tokens, the order of commits and the passes of one case."""
    hosted = golden_model(model) if model in FULL else family_model(model)
    prompts: list[Any] = [[token % 90 for token in row] for row in random_prompts(3, high=14)]
    options = {"max_new_tokens": 32, "block_length": 8, "seed": 0, **given}
    if "scheduler" in given:
        hosted, options = suited(hosted, given["scheduler"]), options_of(**options)
    out = dllm.generate(hosted, prompts, **options)
    commits = out.trace.commit_step.tolist()
    passes = [dict(out.metrics.forwards), list(out.metrics.fed)]
    rows = [[row.forwards, row.row_forwards, row.finish_reason] for row in out.metrics.rows]
    told = json.dumps([[list(row) for row in out.sequences], commits, passes, rows])
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def recorded() -> dict[str, str]:
    """Returns the digest of each case as it was recorded."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def main() -> None:
    """Prints the cases that differ from the record, or writes it anew."""
    torch.set_num_threads(1)
    found = {name: digest(*case) for name, case in settings().items()}
    if "--write" in sys.argv:
        Path(RECORD).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found)} cases recorded")
        return
    changed = [name for name, value in recorded().items() if found.get(name) != value]
    print("\n".join([*changed, f"{len(found)} cases, {len(changed)} changed"]))
    raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
