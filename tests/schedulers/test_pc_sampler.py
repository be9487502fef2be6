"""PC-Sampler: scores by hand, whole runs beside the published rule, and its tables of tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm
from dllm.schedulers import registry
from dllm.schedulers.frequencies import count_tokens, read_frequencies
from dllm.schedulers.pc_sampler import PCSampler
from tests.support import DATA
from tests.support.models import golden_model, random_prompts
from tests.support.views import candidates_of, view_of

TABLE = DATA / "frequencies.json"


def test_a_score_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"num_token": 100, "p_baseline_dict": {"0": 50, "2": 5}}))
    scheduler = PCSampler(str(path), decay=0.0, cap=10.0)
    candidates = candidates_of([[0.9, 0.9, 0.5, 0.4]])  # the others share the rest
    object.__setattr__(candidates, "token", torch.tensor([[0, 0, 2, 1]]))  # 1: not in the corpus
    by_hand = [-0.9 * math.log(0.5)] * 2 + [-0.25 * math.log(0.05), -0.3 * math.log(0.01)]
    assert scheduler.worth(candidates)[0].tolist() == pytest.approx(by_hand, rel=1e-5)
    assert scheduler._table.of(torch.tensor([1, 7, 10**6])).tolist() == pytest.approx([0.01] * 3)


def test_early_columns_and_rare_tokens_first() -> None:
    masked = torch.ones(1, 4, dtype=torch.bool)
    even = candidates_of([[0.8, 0.8, 0.8, 0.8]])
    assert PCSampler(decay=0.1).decide(even, view_of(masked)).commit.int().argmax() == 0
    late = candidates_of([[0.5, 0.5, 0.5, 0.8]])
    assert PCSampler(decay=1.0).decide(late, view_of(masked)).commit.int().argmax() == 0
    assert PCSampler(decay=0.1).decide(late, view_of(masked)).commit.int().argmax() == 3


def published(model: Any, prompt: list[int], options: dict[str, Any], steps: int) -> list[int]:
    """One row of 32 slots in blocks of 16, as the authors' loop goes."""
    mask, start = model.spec.mask_token_id, len(prompt)
    row = torch.tensor([*prompt, *[mask] * 32])
    for begin in (start, start + 16):
        each, more = divmod(16, steps // 2)
        for step in range(steps // 2):
            logits = model.network(row[None])[0].clone()
            logits[:, mask] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            scored = {
                at: score(int(token[at]), float(sure[at]), at - begin, options)
                for at in range(begin, begin + 16)
                if row[at] == mask
            }
            chosen = sorted(scored, key=scored.__getitem__, reverse=True)[: each + (step < more)]
            row[chosen] = token[chosen]
    return [int(token) for token in row]


def score(token: int, sure: float, place: int, options: dict[str, Any]) -> float:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    share = table["p_baseline_dict"].get(str(token), 1) / table["num_token"]
    worth = min(-sure * math.log(share + 1e-9), options["cap"])
    return math.exp(-options["decay"] * place) * worth


@pytest.mark.parametrize("steps", [32, 12])
@pytest.mark.parametrize("options", [{"decay": 0.25, "cap": 10.0}, {"decay": 0.01, "cap": 1.0}])
def test_runs_are_the_published_loops(options: dict[str, Any], steps: int) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(4, seed=5)
    out = dllm.generate(
        model,
        prompts,
        scheduler=PCSampler(str(TABLE), **options, steps=steps),
        max_new_tokens=32,
        block_length=16,
        at_eos="ignore",
    )
    for row, prompt in enumerate(prompts):
        assert list(out.sequences[row]) == published(model, prompt, options, steps)


def test_without_a_table_the_cap_says_nothing() -> None:
    runs = [
        dllm.generate(golden_model("llada_gqa"), random_prompts(3), scheduler=one).sequences
        for one in (PCSampler(decay=0.1), PCSampler(decay=0.1, cap=0.01))
    ]
    assert runs[0] == runs[1]


BAD = [
    ("", "is no JSON"),
    ("[1]", "no table of frequencies: it must look like"),
    ('{"num_token": 3, "p_baseline_dict": {}}', "no table of frequencies"),
    ('{"num_token": 0, "p_baseline_dict": {"1": 1}}', "no table of frequencies"),
    ('{"num_token": 3, "p_baseline_dict": {"a": 3}}', "'a': 3, where token ids"),
    ('{"num_token": 3, "p_baseline_dict": {"-1": 3}}', "'-1': 3, where token ids"),
    ('{"num_token": 3, "p_baseline_dict": {"1": -3}}', "'1': -3, where token ids"),
    ('{"num_token": 3, "p_baseline_dict": {"1": true}}', "'1': True, where token ids"),
    ('{"num_token": 3, "p_baseline_dict": {"99999999999": 3}}', "ids are below 4194304"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_damaged_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        PCSampler(str(path))


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    count_tokens([[1, 2, 1], [500]]).write(path)
    assert read_frequencies(str(path)).counts == {1: 2, 2: 1, 500: 1}
    with pytest.raises(ValueError, match="has token 500, and the model has 128 tokens"):
        dllm.generate(golden_model("llada_gqa"), [[1]], scheduler=PCSampler(str(path)))
    with pytest.raises(ValueError, match=r"cannot be read.*dllm background-frequency"):
        registry.create("pc_sampler:no/such.json")
