"""Settings that replay d2Cache's own decoding loops, KLASS among them."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]

ORDERS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


def vanilla(case: Case) -> dict[str, Any]:
    args = case["args"]
    return {
        "scheduler": scheduler(args),
        "at_eos": "skip" if args.get("stop_until_eos") else "ignore",
    }


def scheduler(args: dict[str, Any]) -> dict[str, Any]:
    order, threshold = ORDERS[args["alg"]], args.get("threshold")
    if args.get("sigma") is not None:
        return {"name": "certainty_density", "sigma": args["sigma"], "threshold": threshold}
    if args.get("gamma") is not None:
        return {"name": "entropy_bound", "bound": args["gamma"], "order": order}
    if args.get("factor") is not None:
        return {"name": "factor", "factor": args["factor"], "last": "waits"}
    if threshold is not None:
        return {"name": "threshold", "threshold": threshold}
    steps = -(-args["block_length"] // args["num_transfer_tokens"])
    blocks = args["gen_length"] // args["block_length"]
    return {"name": "fixed_quota", "order": order, "steps": steps * blocks}


def klass(case: Case) -> dict[str, Any]:
    args = case["args"]
    if args["threshold"] is None:  # d2Cache then never looks at stability
        return {"scheduler": "fixed_quota"}
    return {
        "scheduler": {
            "name": "klass",
            "threshold": args["threshold"],
            "kl_threshold": args["kl_threshold"],
            "history": args["kl_history_length"],
        }
    }


METHODS = {"d2cache_vanilla": vanilla, "klass": klass}
