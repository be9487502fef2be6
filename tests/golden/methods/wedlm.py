"""Settings that replay Tencent/WeDLM's engine."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def engine(case: Case) -> dict[str, Any]:
    args = case["args"]
    return {
        "scheduler": {
            "name": "wedlm",
            "threshold": args["entropy_threshold"],
            "penalty": args["pos_penalty_factor"],
        },
        "cache": "streaming",
        "block_length": args["window"],
        "eos_token_id": args["stop_token_ids"],
        "at_eos": "stop",
    }


METHODS = {"wedlm_engine": engine}
