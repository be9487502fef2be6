"""SGLang's algorithms: every recorded step of a block, on the logits that it was recorded with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dllm
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support import GOLDEN
from tests.support.models import golden_model

ALL = json.loads((GOLDEN / "cases" / "sglang_dllm_steps.json").read_text())["cases"]
LOGITS = GOLDEN / "cases" / "sglang_logits.safetensors"
Case = dict[str, Any]

# Gemma4Renoise has no mask token: what is not accepted becomes random tokens (README.md there).
CASES = [case for case in ALL if case["algorithm"] != "Gemma4Renoise"]


def scheduler_of(case: Case) -> dict[str, Any]:
    given, algorithm = case["algorithm_config"], case["algorithm"]
    if algorithm == "LowConfidence":
        threshold = given.get("threshold", 0.95)
        return {"name": "token_editing", "threshold": threshold, "editing_threshold": None}
    options = {
        "threshold": given.get("threshold", 0.5),
        "editing_threshold": given.get("edit_threshold", 0),
        "post_steps": given.get("max_post_edit_steps", 16),
    }
    if algorithm == "JointThreshold":
        return {"name": "token_editing", **options}
    ids = {name: case["options"][name] for name in ("delete_token_id", "split_token_id")}
    return {"name": "insert_delete", **options, **ids}


def steps_of(case: Case, row: int) -> list[dict[str, Any]]:
    """Returns the recorded forwards of a row, each block's until the row is done."""
    part = slice(row * case["block_size"], (row + 1) * case["block_size"])
    logits, steps = load_file(LOGITS), []
    for block in case["blocks"]:
        for step in block["steps"]:
            before, after, done = (step[name] for name in ("input_ids", "output_ids", "done"))
            state = step["states_after"][row] if "states_after" in step else None
            own = {"before": before[part], "after": after[part], "done": done[row], "state": state}
            steps.append({**own, "logits": logits[step["logits"]][part].float()})
            if done[row]:
                break
    return steps


class Recorded:
    """A model that says what was recorded for what stands in the block.

    The forward in which a block is done changes nothing and stores its keys; we have it only where
    it is what finds that nothing changes.
    """

    def __init__(self, case: Case, row: int) -> None:
        self.model, self.steps = golden_model("llada2_moe", "float32"), steps_of(case, row)
        self.width, self.penalty = (
            case["block_size"],
            case["algorithm_config"].get("penalty_lambda"),
        )
        self.taken: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        there = tokens.gather(1, plan.positions)[0, -self.width :]
        step = self.steps.pop(0)
        if step["before"] != there.tolist():
            assert step["done"]
            assert step["before"] == step["after"]
            step = self.steps.pop(0)
        assert step["before"] == there.tolist()
        self.taken.append(step)
        logits = step["logits"]
        if self.penalty:  # on repeating the column before; it is not offered
            less = torch.full((self.width - 1, 1), -float(self.penalty))
            logits = logits.clone()
            logits[1:].scatter_add_(1, there[:-1, None], less)
        at = torch.arange(self.width)[None] if plan.logit_columns is None else plan.logit_columns
        return logits[at[0]][None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recorded_steps(case: Case) -> None:
    for row, (prompt, final) in enumerate(zip(case["prompts"], case["final"], strict=True)):
        model = Recorded(case, row)
        running = dllm.stream(
            model,
            [prompt],
            max_new_tokens=len(final) - len(prompt),
            block_length=case["block_size"],
            scheduler=scheduler_of(case),
            cache={"name": "none", "beyond_block": False},
            blocks_from="zero",
            at_eos="ignore",
        )
        for event in running:
            step, canvas = model.taken[-1], running.canvas
            assert event.tokens[0].tolist() == step["after"]
            check_state(step["state"], canvas.scheduler_state)
        assert [step["done"] for step in model.steps] in ([], [True])
        assert list(running.output.sequences[0]) == final


def check_state(recorded: Any, ours: Any) -> None:
    """Compares what InDel remembers."""
    if recorded and "is_orig_mask" in recorded:
        assert ours["original"][0].tolist() == recorded["is_orig_mask"]
        assert int(ours["post"][0]) == recorded["post_edit_steps"]
