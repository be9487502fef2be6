"""Settings that replay FreeDave and the static decoding that it is compared with."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def static(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler: dict[str, Any] = {"name": "fixed_quota", "steps": args["decoding_steps"]}
    if args["confidence_threshold"] is not None:
        scheduler = {"name": "threshold", "threshold": args["confidence_threshold"]}
    return {
        "max_new_tokens": args["max_gen_length"],
        "scheduler": scheduler,
        "cache": "dual" if args["dual_cache"] else "prefix",
    }


def freedave(case: Case) -> dict[str, Any]:
    args = case["args"]
    execution = {"tree_attention": "tree", "batch_expanding": "batch", "debug": "sequential"}
    verifier = {"name": "freedave", "draft_steps": args["draft_steps"]}
    return {**static(case), "verifier": {**verifier, "execution": execution[args["draft_mode"]]}}


METHODS = {"freedave_static": static, "freedave": freedave}
