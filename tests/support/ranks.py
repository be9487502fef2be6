"""A network over two processes of a launch beside the same one in one; run by torchrun.

`python -m tests.support.ranks FOLDER`, in each of two processes, prints what the first one found.
"""

from __future__ import annotations

import json
import sys
from typing import Any, cast

import torch

import dllm
from dllm.models.parallel import Leading, follow

PROMPTS = [[5, 6, 7, 8, 9], [6, 7, 8]]
# Rows whose seats come and go, in the stores of both processes.
LIST = [[5, 6, 7, 8, 9, 10][: 2 + number % 5] for number in range(20)]
LISTED: tuple[dict[str, Any], ...] = (
    {"scheduler": "threshold:0.5", "cache": "prefix"},
    {"scheduler": "threshold:0.5", "cache": "dual"},
    {"cache": "block_causal"},
)
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7},
    {"scheduler": "threshold:0.5"},
    {"scheduler": "threshold:0.5", "cache": "prefix"},
    {"cache": "dual"},
    {"cache": "dkv"},
    {"cache": "d2cache"},
    {"verifier": "freedave:2"},
)


def compare(folder: str) -> dict[str, Any] | None:
    """Returns what is apart from one process; None: this process followed."""
    model = dllm.load(folder, dtype="float64", tensor_parallel=2)
    if not isinstance(model.runner, Leading):
        follow(model)
        return None
    whole = dllm.load(folder, dtype="float64", speed=None)
    options: dict[str, Any] = {"max_new_tokens": 16, "seed": 1}
    ran, other = [], []
    for prompts, way in [*((PROMPTS, way) for way in WAYS), *((LIST, way) for way in LISTED)]:
        try:
            expected = dllm.generate(whole, prompts, **options, **way)
        except ValueError:  # not with this network
            continue
        ran.append(way)
        if dllm.generate(model, prompts, **options, **way).sequences != expected.sequences:
            other.append(way)
    tokens = torch.arange(24).view(2, 12) + 3
    with torch.inference_mode():
        logits = cast("Any", model.runner)(tokens, None, None), whole.network(tokens)
    apart = (logits[0] - logits[1]).abs().max().item()
    count = sum(weight.numel() for weight in model.network.parameters())
    share = count / sum(weight.numel() for weight in whole.network.parameters())
    model.runner.end()
    return {"ran": len(ran), "other": other, "apart": apart, "share": share}


if __name__ == "__main__":
    found = compare(sys.argv[1])
    if found is not None:
        print(json.dumps(found))
