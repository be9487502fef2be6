"""A grown network computes what the narrow one does, and what cannot grow is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.models.config import ExpertsConfig, NetworkConfig
from dllm.models.transformer import Transformer
from dllm.training.growth import disturb, likeness, shares, wider
from dllm.training.tiny import Run, new_network
from dllm.training.wider import Growth, begin
from tests.support import GOLDEN

SHAPE = NetworkConfig(
    vocab_size=31,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_theta=1e4,
    rms_norm_eps=1e-2,  # large, so that a norm of another mean square shows
    rope_in_float32=True,
)
EXPERTS = ExpertsConfig(num_experts=2, num_active=1, intermediate_size=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network_of(shape: NetworkConfig) -> Transformer:
    """Returns a network in which every weight counts, those of norms as well."""
    network, source = Transformer(shape).double(), seeded(5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=source) * 0.4 + (weight.dim() == 1))
    return network


def logits(network: Transformer, tokens: Tensor, seen: Tensor) -> Tensor:
    columns = torch.arange(tokens.shape[1]).expand_as(tokens) * 3
    with torch.no_grad():
        return network.logits(network.hidden(tokens, columns, seen))


def same(grown: Tensor, known: Tensor) -> None:
    assert known.std() > 0.1
    torch.testing.assert_close(grown, known, rtol=0, atol=1e-4)  # norms are in float32


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_a_grown_network_computes_the_same(times: int, num_kv_heads: int) -> None:
    narrow = network_of(replace(SHAPE, num_kv_heads=num_kv_heads))
    tokens = torch.randint(0, 31, (3, 17), generator=seeded())
    seen = torch.arange(17).expand(3, 1, 17) < torch.tensor([17, 9, 12])[:, None, None]
    grown = wider(narrow, times, seeded())
    shape = grown.config
    assert (shape.hidden_size, shape.intermediate_size) == (24 * times, 40 * times)
    assert (shape.num_heads, shape.num_kv_heads) == (4 * times, num_kv_heads * times)
    assert shape.head_dim == 6
    same(logits(grown, tokens, seen), logits(narrow, tokens, seen))


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("name", ["tiny", "llada_mha", "llada_gqa"])
def test_checkpoints_compute_the_same(name: str, times: int) -> None:
    folder = name if name == "tiny" else GOLDEN / "models" / name
    narrow = dllm.load(folder, dtype="float64", speed=None).network
    tokens = torch.randint(0, 110, (2, 40), generator=seeded())
    with torch.no_grad():
        grown, known = wider(narrow, times, seeded())(tokens), narrow(tokens)
    same(grown, known)


def test_shares_are_unequal_add_up_to_one_and_keep_the_length_of_rows() -> None:
    weight = torch.ones(50, 400, dtype=torch.float64)
    for times in (2, 3):
        drawn = shares(weight, times, seeded())
        assert drawn.shape == (50, times, 400)
        torch.testing.assert_close(drawn.sum(1), weight)
        assert float(drawn.std(1).min()) > 0
        assert float(drawn.square().sum(1).mean()) == pytest.approx(1, rel=0.02)


def test_copies_differ_where_they_may() -> None:
    grown = wider(network_of(SHAPE), 2, seeded())
    alike = likeness(grown, 2)
    assert alike.pop("embedding") == pytest.approx(1)
    assert abs(alike.pop("head")) < 0.2
    assert set(alike) == {"q", "k", "v", "out", "gate", "up", "down"}
    assert all(0.3 < one < 0.7 for one in alike.values())
    disturb(grown, 0.5, seeded(1))
    assert likeness(grown, 2)["embedding"] == pytest.approx(1 / 1.25, abs=0.1)


def test_likeness_is_the_cosine_of_a_unit_and_its_copy() -> None:
    grown = wider(network_of(replace(SHAPE, num_layers=1)), 3, seeded())
    rows = grown.state_dict()["blocks.0.feed_forward.up.weight"]  # 3 sets of 40
    pairs = [
        (a * 40 + unit, b * 40 + unit) for unit in range(40) for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    cosines = [float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for i, j in pairs]
    assert likeness(grown, 3)["up"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-4)


def test_noise_is_of_the_size_of_each_matrix() -> None:
    network = new_network(116, 0)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    disturb(network, 0.25, seeded())
    for name, weight in network.state_dict().items():
        size = float((weight - before[name]).square().mean().sqrt())
        whole = float(before[name].square().mean().sqrt())
        assert size == pytest.approx(0.25 * whole if weight.dim() == 2 else 0, rel=0.05)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"tie_embeddings": True}, "tie_embeddings=True"),
        ({"qkv_bias": True, "qk_norm": True}, "qkv_bias=True, qk_norm=True"),
        ({"fused_qkv": True}, "fused_qkv=True"),
        ({"rotary_dim": 4}, "rotary_dim=4"),
        ({"experts": EXPERTS}, "experts=ExpertsConfig"),
    ],
)
def test_other_layouts_are_refused(other: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"{named}.*cannot grow.*LLaDA's layout"):
        wider(Transformer(replace(SHAPE, **other)), 2, seeded())


def test_too_few_times_and_too_many_are_refused() -> None:
    for times in (1, 0, -2):
        with pytest.raises(ValueError, match=rf"times={times} .*give 2 or more"):
            wider(Transformer(SHAPE), times, seeded())
    with pytest.raises(ValueError, match=r"hidden_size=.* must be "):
        wider(Transformer(SHAPE), 2**20, seeded())


def test_rounded_weights_are_refused() -> None:
    rounded = dllm.load("tiny", speed="int8").network
    with pytest.raises(ValueError, match=r"rounded or joined.*speed=None"):
        wider(rounded, 2, seeded())


def test_models_that_the_corpus_is_not_for_are_refused(tmp_path: Path) -> None:
    shifted = dllm.load(GOLDEN / "models" / "dream_gqa", speed=None)
    with pytest.raises(ValueError, match="logit_shift=1 cannot grow here"):
        begin(tmp_path, shifted, Growth(), "cpu", compiled=False)
    tiny, wordless = dllm.load("tiny", speed=None), dllm.load(GOLDEN / "models" / "llada_mha")
    tokenizer: Any = deepcopy(tiny.tokenizer)
    tokenizer.add_tokens(["zebra"])
    for other in (wordless, replace(tiny, tokenizer=tokenizer)):
        with pytest.raises(ValueError, match=r"another vocabulary.*'tiny'"):
            begin(tmp_path, other, Growth(), "cpu", compiled=False)
    assert not list(tmp_path.iterdir())


SMALL = NetworkConfig(
    vocab_size=116,
    hidden_size=8,
    intermediate_size=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    rope_in_float32=True,
)


def test_a_run_grows_trains_saves_and_goes_on(tmp_path: Path) -> None:
    tiny = dllm.load("tiny", speed=None)
    narrow = replace(tiny, network=network_of(SMALL).float())
    recipe = Growth(steps=4, times=3, noise=0.1, grown_from="abc")

    def begun(recipe: Growth = recipe) -> Run:
        return begin(tmp_path, narrow, recipe, "cpu", compiled=False)

    run = begun()
    assert run.network.config == replace(
        SMALL, hidden_size=24, intermediate_size=24, num_heads=6, num_kv_heads=3
    )
    tokens = torch.randint(0, 116, (2, 9), generator=seeded())
    columns = torch.arange(9).expand_as(tokens)
    assert run.teacher is not None
    taught = run.teacher(tokens, columns, torch.ones(2, 1, 9, dtype=torch.bool))
    torch.testing.assert_close(taught, narrow.network(tokens))  # what it was, undisturbed
    first = run.network(tokens).detach()
    run.train()
    last = run.network(tokens).detach()
    assert not torch.equal(first, last)
    again = begun()
    assert again.step == 4
    assert torch.equal(again.network(tokens), last)
    for other in (replace(recipe, noise=0.2), replace(recipe, grown_from="abd")):
        with pytest.raises(ValueError, match=r"another recipe.*another --output"):
            begun(other)
    saved = dllm.load(tmp_path, speed=None)
    assert saved.network.config == run.network.config
    assert torch.equal(saved.network(tokens), last)
    assert json.loads((tmp_path / "training.json").read_text())["grown_from"] == "abc"
