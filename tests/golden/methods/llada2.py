"""Settings that replay the generation of LLaDA2.0 and 2.1, and diffusers' LLaDA2Pipeline."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def llada2(case: Case) -> dict[str, Any]:
    args = case["args"]
    editing = args["editing_threshold"]
    return {
        "scheduler": {
            "name": "token_editing",
            "threshold": args["threshold"],
            "editing_threshold": editing if editing and editing > 0 else None,  # theirs: 0 is off
            "post_steps": args["max_post_steps"] + 1,  # its counter allows one more
            "steps": args["num_inference_steps"],
        },
        "cache": {"name": "none", "beyond_block": False},
        "blocks_from": "zero",
        "at_eos": "stop" if args["eos_early_stop"] else "ignore",
    }


def of_diffusers(case: Case) -> dict[str, Any]:
    end = case["args"]["eos_token_id"]
    return {
        **llada2(case),
        "eos_token_id": [] if end is None else [end],
        **({} if case["attention"] == "full" else {"blocks_from": "prompt"}),
    }


def recomputed(case: Case) -> dict[str, Any]:
    """Returns what both versions share: everything up to the block's end is recomputed."""
    return {
        "cache": {"name": "none", "beyond_block": False},
        "eos_token_id": [case["args"]["eos_id"]],
    }


def version_0(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler = {
        "name": "token_editing",
        "threshold": args["threshold"],
        "editing_threshold": None,
        "steps": min(args["steps"], args["gen_length"] // args["minimal_topk"]),
    }
    # It looks for end tokens after each block, whatever `eos_early_stop` says.
    return {**recomputed(case), "scheduler": scheduler, "at_eos": "block"}


def version_1(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler = {
        "name": "token_editing",
        "threshold": args["threshold"],
        "editing_threshold": args["editing_threshold"],
        "post_steps": args["max_post_steps"],
        "num_to_transfer": args["num_to_transfer"],
    }
    at_eos = "block" if args["eos_early_stop"] else "ignore"
    return {**recomputed(case), "scheduler": scheduler, "at_eos": at_eos}


METHODS = {
    "llada2_pipeline": llada2,
    "diffusers_llada2_pipeline": of_diffusers,
    "llada2.0_generate": version_0,
    "llada2.1_generate": version_1,
}
