"""Settings that replay vhicrgit/Window-Diffusion."""

from __future__ import annotations

from typing import Any

from tests.golden.methods.dream import dream

Case = dict[str, Any]


def llada(case: Case) -> dict[str, Any]:
    args = case["args"]
    return {
        "scheduler": {"name": "fixed_quota", "steps": args["steps"]},
        "cache": {
            "name": "window_diffusion",
            "active": args["active_tokens"],
            "window": args["window_tokens"],
            "refresh": args["refresh_cycle"],
        },
    }


def of_dream(case: Case) -> dict[str, Any]:
    args = case["args"]
    one_a_step = {"name": "fixed_quota", "order": "entropy"}
    stops = {"name": "end_of_text", "inner": one_a_step}
    return {
        "at_eos": "ignore",
        "top_k": 50,
        "confidence": "tempered",
        "scheduler": stops if args["early_stop"] else dream(case)["scheduler"],
        "cache": {
            "name": "window_diffusion",
            "active": args["i_win_size"],
            "window": args["o_win_size"] - 1,
            "refresh": args["refresh_cycle"],
            "pruned": True,
            "contiguous": True,
            "slides": args["slide_window"],
            "first_token": "force",
            "after_end": True,
        },
    }


METHODS = {"window_diffusion_llada": llada, "window_diffusion_dream": of_dream}
