"""Settings that replay Learn2PD with its recorded filters and end-of-text prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Case = dict[str, Any]

GOLDEN = Path(__file__).parents[1]


def learn2pd(case: Case) -> dict[str, Any]:
    scheduler = {
        "name": "learn2pd",
        "filter": None if case["filter"] is None else str(GOLDEN / case["filter"]),
        "threshold": case["accept_thres"],
        "steps": case["args"]["steps"],
    }
    return {"scheduler": scheduler}


def with_end_of_text(case: Case) -> dict[str, Any]:
    # The cached functions look for end tokens in the block alone.
    cache = {"with_prefix_cache": "prefix", "with_dual_cache": "dual"}
    found = cache.get(case["method"].removeprefix("learn2pd_generate_"))
    scheduler = {
        "name": "end_of_text",
        "inner": learn2pd(case)["scheduler"],
        "rule": "accepted",
        "scope": "row" if found is None else "block",
    }
    return {"scheduler": scheduler, "cache": found or "none"}


METHODS = {
    "learn2pd_generate_learn2parallel": learn2pd,
    "learn2pd_generate_predict_eot": with_end_of_text,
    "learn2pd_generate_l2p_eot": with_end_of_text,
    "learn2pd_generate_with_prefix_cache": with_end_of_text,
    "learn2pd_generate_with_dual_cache": with_end_of_text,
}
