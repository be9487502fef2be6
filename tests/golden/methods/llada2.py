"""Settings that replay diffusers' LLaDA2Pipeline."""

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


METHODS = {"llada2_pipeline": llada2}
