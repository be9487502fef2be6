"""Settings that replay NVlabs/Fast-dLLM and dInfer's copy of it."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def fast_dllm(case: Case) -> dict[str, Any]:
    args = case["args"]
    caches = {"prefix": "prefix", "dual": "dual"}
    cache = next((name for key, name in caches.items() if key in case["method"]), "none")
    if args.get("factor") is not None:
        scheduler = {"name": "factor", "factor": args["factor"], "last": "passes"}
    elif args.get("threshold") is not None:
        scheduler = {"name": "threshold", "threshold": args["threshold"]}
    else:
        scheduler = {"name": "fixed_quota", "steps": args["steps"]}
    return {"scheduler": scheduler, "cache": cache}


METHODS = {
    "fastdllm_generate": fast_dllm,
    "fastdllm_generate_with_prefix_cache": fast_dllm,
    "fastdllm_generate_with_dual_cache": fast_dllm,
}
