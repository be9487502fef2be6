"""Settings that replay LocalLeap."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def localleap(case: Case) -> dict[str, Any]:
    args = case["args"]
    threshold, relaxed = args["threshold"], args["relaxed_threshold"]
    if threshold is None:
        scheduler: dict[str, Any] = {"name": "fixed_quota", "steps": args["steps"]}
    elif relaxed is None:
        scheduler = {"name": "threshold", "threshold": threshold}
    else:
        scheduler = {
            "name": "localleap",
            "threshold": threshold,
            "relaxed_threshold": relaxed,
            "radius": args["radius"],
        }
    return {"scheduler": scheduler, "at_eos": "block" if args["early_stop"] else "ignore"}


METHODS = {"localleap": localleap}
