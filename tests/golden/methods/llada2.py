"""Settings that replay diffusers' LLaDA2Pipeline."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def llada2(case: Case) -> dict[str, Any]:
    args = case["args"]
    return {
        "scheduler": {
            "name": "token_editing",
            "threshold": args["threshold"],
            "editing_threshold": args["editing_threshold"],
            "post_steps": args["max_post_steps"] + 1,  # its counter allows one more
            "steps": args["num_inference_steps"],
        },
        "cache": {"name": "none", "beyond_block": False},
        "blocks_from": "zero",
        "at_eos": "stop" if args["eos_early_stop"] else "ignore",
    }


METHODS = {"llada2_pipeline": llada2}
