"""Settings that replay the `generate` of Fast-dLLM v2's modelling file."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def fast_dllm_v2(case: Case) -> dict[str, Any]:
    args, prompt = case["args"], len(case["prompt"])
    block = args["block_size"]
    # Its last pass proposes the first token of one block more, which it then does not begin.
    num_blocks = prompt // block + args["max_new_tokens"] // block + 1
    stop = args["stop_token"]
    return {
        "max_new_tokens": num_blocks * block - prompt,
        "block_length": block,
        "scheduler": {"name": "threshold", "threshold": args["threshold"]},
        "cache": {
            "name": "sub_block",
            "sub_block": args["small_block_size"],
            "first_token": "force",
            "reuse": args["use_block_cache"],
        },
        **({"at_eos": "ignore"} if stop < 0 else {"at_eos": "stop", "eos_token_id": stop}),
    }


METHODS = {"fast_dllm_v2_generate": fast_dllm_v2}
