"""Our schedulers on SGLang's blocks: its recorded forwards, and what our own loop does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dllm.integrations.sglang import algorithms
from dllm.integrations.sglang.block import UNTOLD
from dllm.integrations.sglang.hosting import reason_against
from dllm.schedulers.base import Candidates, Decision, Scheduler, View
from tests.support import GOLDEN
from tests.support.sglang import Batch, Interface, config_of

ALL = json.loads((GOLDEN / "cases" / "sglang_dllm_steps.json").read_text())["cases"]
Case = dict[str, Any]
# Not the algorithm without a mask token, nor the option that a processor of logits cannot be.
CASES = [
    case
    for case in ALL
    if case["algorithm"] != "Gemma4Renoise" and "penalty_lambda" not in case["algorithm_config"]
]


def ours(case: Case) -> Any:
    """Returns what SGLang's algorithm is here, hosted as ours."""
    given = case["algorithm_config"]
    if case["algorithm"] == "LowConfidence":
        name = "DllmTokenEditing"
        options = {"threshold": given.get("threshold", 0.95), "editing_threshold": None}
    else:
        name = "DllmTokenEditing"
        options = {
            "threshold": given.get("threshold", 0.5),
            "editing_threshold": given.get("edit_threshold", 0),
            "post_steps": given.get("max_post_edit_steps", 16),
        }
    if case["algorithm"] == "JointThresholdInDel":
        name = "DllmInsertDelete"
        options |= {key: case["options"][key] for key in ("delete_token_id", "split_token_id")}
    return algorithms(Interface)[name](config_of(case["mask_id"], case["block_size"], options))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recorded_forwards(case: Case) -> None:
    """Tokens, done flags and so the number of forwards are those of the engine's own code."""
    algorithm, logits = ours(case), load_file(GOLDEN / "cases" / "sglang_logits.safetensors")
    count = 0
    for block in case["blocks"]:
        states: list[Any] = [None] * len(block["steps"][0]["done"])
        mask = block["prompt_mask"] if case["options"].get("explicit_mask") else None
        for step in block["steps"]:
            batch = Batch(torch.tensor(step["input_ids"]), len(states), mask)
            read = logits[step["logits"]].float()
            done = algorithm.step(batch, read, states)
            assert batch.input_ids.tolist() == step["output_ids"]
            assert done == step["done"]
            count += 1
    assert count > len(case["blocks"])


def test_tokens_are_written_where_they_stood() -> None:
    """A captured graph reads the tensor that it was captured with."""
    algorithm = algorithms(Interface)["DllmThreshold"](config_of(9, 4, {"threshold": 0.0}))
    batch = Batch(torch.tensor([1, 9, 9, 9]), 1, None)
    before = batch.input_ids
    states: list[Any] = [None]
    logits = torch.zeros(4, 10)
    logits[:, 3] = 5.0
    assert algorithm.step(batch, logits, states) == [False], "no forward has seen these tokens"
    assert batch.input_ids is before
    assert before.tolist() == [1, 3, 3, 3]
    assert algorithm.step(batch, logits, states) == [True]


def test_a_mask_of_the_prompt_is_text() -> None:
    """The engine tells by `dllm_prompt_mask` that a mask token is the client's own."""
    algorithm = algorithms(Interface)["DllmThreshold"](config_of(9, 4, {"threshold": 0.0}))
    batch = Batch(torch.tensor([9, 1, 9, 9]), 1, [[True, True, False, False]])
    logits = torch.zeros(4, 10)
    logits[:, 3] = 5.0
    algorithm.step(batch, logits, [None])
    assert batch.input_ids.tolist() == [9, 1, 3, 3]


def test_requests_are_mixed_anew_between_forwards() -> None:
    """First done, first out: a block that waits beside others gets what it gets alone."""
    made = algorithms(Interface)["DllmTokenEditing"]
    algorithm = made(config_of(9, 4, {"threshold": 0.8, "editing_threshold": 0.3, "post_steps": 2}))
    source = torch.Generator().manual_seed(1)
    rounds = torch.randn(8, 3, 4, 10, generator=source) * 2
    logits = {(r, n): rounds[n, r] for r in range(3) for n in range(8)}

    def alone(row: int) -> list[list[int]]:
        tokens, states = torch.tensor([row, 9, 9, 9]), [None]
        seen = []
        for number in range(8):
            batch = Batch(tokens, 1, None)
            done = algorithm.step(batch, logits[row, number], states)
            seen.append(tokens.tolist())
            if done[0]:
                break
        return seen

    expected = {row: alone(row) for row in range(3)}
    found: dict[int, list[list[int]]] = {row: [] for row in range(3)}
    tokens = {row: torch.tensor([row, 9, 9, 9]) for row in range(3)}
    carried: dict[int, Any] = dict.fromkeys(range(3))
    running = [0]
    while running:
        batch = Batch(torch.cat([tokens[row] for row in running]), len(running), None)
        read = torch.cat([logits[row, len(found[row])] for row in running])
        states = [carried[row] for row in running]
        done = algorithm.step(batch, read, states)
        for place, row in enumerate(running):
            tokens[row] = batch.input_ids.view(-1, 4)[place].clone()
            carried[row] = states[place]
            found[row].append(tokens[row].tolist())
        running = [row for row, over in zip(running, done, strict=True) if not over]
        running = [*[row for row in range(3) if not found[row]][:1], *running]  # one enters, first
    assert found == expected


@dataclass(frozen=True)
class Nearer(Scheduler):
    """Commits what is near the end of the row, if it is told where that is."""

    source = "nobody's"
    asks: str = "length"

    def select(self, candidates: Candidates, view: View) -> Decision:
        asked = getattr(view, self.asks)
        return Decision(view.masked & (asked.reshape(len(view.columns), -1) >= 0))


@pytest.mark.parametrize("name", [*UNTOLD, "offset"])
def test_who_asks_for_what_only_the_engine_knows_is_not_hosted(name: str) -> None:
    reason = reason_against(Nearer(asks=name), 8)
    assert str(reason) == UNTOLD["prompt_length" if name == "offset" else name]
    assert reason_against(Nearer(asks="block_step"), 8) is None
