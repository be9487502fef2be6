"""Settings that replay Prophet."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def prophet(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler: dict[str, Any] = {
        "name": "prophet",
        "inner": {"name": "fixed_quota", "steps": args["steps"]},
        "region": "fixed",
        "answer_start": args["answer_start_pos"] - len(case["prompt"]),
        "progress": "steps",
        "first_step": 1,
    }
    given = args["early_exit_thresholds"]
    if given is not None:
        scheduler |= {"high": given["early"], "mid": given["mid"], "low": given["late"]}
    planted = {int(slot): token for slot, token in args.get("constraints", {}).items()}
    return {"scheduler": scheduler, "fixed": planted or None}


METHODS = {"prophet": prophet}
