"""Weights in 8 and 4 bits: how near they are, which are refused, and how they are saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dllm
from dllm.models.config import CheckpointError
from dllm.models.digest import weights_digest
from dllm.models.loading.empty import empty_network
from dllm.models.loading.room import Room
from dllm.models.speed import check_on, linear, parse_ways
from dllm.models.speed.rounded import (
    GROUPS,
    RoundedLinear,
    Rounding,
    check_floats,
    parse_rounding,
)
from tests.support import GOLDEN, ROOT
from tests.support.models import golden_model

WAYS = ("int8", "fp8", "int4", "int4:group_size=32", "int4:group_size=128")
QUESTION = "tom has 53 pens. tom loses 3. how many pens does tom have?"
FP8 = Rounding(8, floating=True)
FAMILIES = ("llada_mha", "llada_gqa", "dream_gqa", "sdar_dense", "fast_dllm_v2", "wedlm")


@pytest.fixture(autouse=True)
def _rounds() -> None:
    pytest.importorskip("torchao")


def drawn(rows: int, width: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(width, rows)
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    layer.weight = nn.Parameter(values.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(values[:, 0].to(dtype), requires_grad=False)
    return layer


def tokens() -> Tensor:
    return torch.randint(2, 100, (4, 9), generator=torch.Generator().manual_seed(1))


def roundings() -> Iterator[Rounding]:
    """Yields those with even steps."""
    yield Rounding(8)
    yield from (Rounding(4, size) for size in GROUPS)


def test_floats_of_eight_bits_by_hand() -> None:
    layer = drawn(2, 8)
    row = [448.0, -1.0, 1.0625, 1.07, 2**-9, 2**-11, 0.0, -300.0]
    layer.weight = nn.Parameter(torch.tensor([row, [0.0] * 8]), requires_grad=False)
    found = RoundedLinear.of(layer, FP8)
    assert (found.packed.dtype, found.zero) == (torch.uint8, None)
    # A tie goes to the even mantissa; below 2**-9, the smallest, there is zero; -300 is between
    # -288 and -320.
    near = [448.0, -1.0, 1.0, 1.125, 2**-9, 0.0, 0.0, -288.0]
    assert found.widened().tolist() == [near, [0.0] * 8]
    # A sign, 4 bits of exponent with a bias of 7, 3 of mantissa.
    assert found.packed[0, :2].tolist() == [0b0_1111_110, 0b1_0111_000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_of_eight_bits_are_those_of_torchao(dtype: torch.dtype) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    layer = drawn(50, 128, dtype)
    layer.weight *= 0.02  # as those of networks
    ours = RoundedLinear.of(layer, FP8)
    theirs = nn.Sequential(deepcopy(layer))
    quantize_(theirs, Float8WeightOnlyConfig())
    # Their scales are in float32, and ours have the dtype of the products.
    weight: Any = theirs[0].weight
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.widened(), weight.dequantize(), rtol=eps, atol=0)
    large = torch.full((1, 128), 1000.0, dtype=dtype)  # before its scale a product may be large
    assert bool(ours(large).isfinite().all())
    error = (ours.widened() - layer.weight).abs() / layer.weight.abs().clamp(min=1e-3)
    assert 0.02 < float(error.max()) < 0.07  # half a step of three bits, 1/16, in the narrowest


@pytest.mark.parametrize("rounding", [*roundings()], ids=lambda one: one.way)
def test_each_weight_is_within_half_a_step(rounding: Rounding) -> None:
    layer = drawn(40, 256)
    near = RoundedLinear.of(layer, rounding).widened()
    size = rounding.group_size or 256
    groups = layer.weight.view(40, -1, size)
    if rounding.bits == 8:
        step = groups.abs().amax(-1, keepdim=True) / 127
    else:
        step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    off = (near.view_as(groups) - groups).abs()
    # The zero is rounded too, which moves the ends of a range by half a step.
    assert bool((off <= step * (0.51 if rounding.bits == 8 else 1.01)).all())
    assert bool((off > step * 0.4).any())


def test_four_bits_of_a_row_by_hand() -> None:
    layer = drawn(1, 32)
    layer.weight = nn.Parameter(torch.arange(-8, 8).repeat(2)[None].float(), requires_grad=False)
    found = RoundedLinear.of(layer, Rounding(4, 32))
    assert found.scale.tolist() == [[1.0]]
    assert found.zero is not None
    assert found.zero.tolist() == [[8]]
    # Column 0 is -8, which is 0 of 15, and shares a byte with column 16, the other half's first.
    assert found.packed[0, :3].tolist() == [0 | 0 << 4, 1 | 1 << 4, 2 | 2 << 4]
    assert torch.equal(found.widened(), layer.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", [Rounding(8), FP8, Rounding(4, 64)], ids=lambda one: one.way)
def test_a_product_is_that_of_the_widened_weight(
    rounding: Rounding, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = RoundedLinear.of(drawn(50, 128, dtype), rounding)
    x = torch.randn(3, 7, 128, generator=torch.Generator().manual_seed(2)).to(dtype)
    wide = layer.widened().double()
    assert layer.bias is not None
    expected = (x.double() @ wide.T + layer.bias.double()).to(dtype)
    close: dict[str, Any]
    close = {"rtol": 2e-2, "atol": 0.2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(layer(x), expected, **close)
    whole = layer(x)
    monkeypatch.setattr("dllm.models.speed.rounded._PART", 1)  # a row of the weight at a time
    torch.testing.assert_close(layer(x), whole, **close)
    torch.testing.assert_close(layer.outputs(x, 20), whole[..., 20:], **close)


@pytest.mark.parametrize("way", WAYS)
def test_rounded_answers_do_not_depend_on_the_batch(way: str) -> None:
    model = dllm.load("tiny", speed=way)
    assert model.name == f"tiny+{way}"
    others = ["anna has 7 cups. anna finds 8. how many cups does anna have?", "how many"]
    together = dllm.generate(model, [QUESTION, *others], cache="dual")
    for row, prompt in enumerate([QUESTION, *others]):
        alone = dllm.generate(model, [prompt], cache="dual")
        assert alone.texts is not None
        assert together.texts is not None
        assert alone.texts[0] == together.texts[row]


def test_smaller_groups_are_nearer() -> None:
    layer = drawn(40, 256)
    off = [
        float((RoundedLinear.of(layer, rounding).widened() - layer.weight).norm())
        for rounding in roundings()
    ]
    assert off == sorted(off)
    plain = dllm.load("tiny", speed=None).network(tokens())
    eight, floats, four = (
        float((dllm.load("tiny", speed=way).network(tokens()) - plain).norm() / plain.norm())
        for way in ("int8", "fp8", "int4:32")
    )
    assert 0 < eight < floats < 0.1 < four < 0.3
    assert eight < 0.05


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way", ["int8", "fp8", "int4:32"])
def test_a_saved_model_is_the_rounded_one(name: str, way: str, tmp_path: Path) -> None:
    model = dllm.load(GOLDEN / "models" / name, speed=way)
    dllm.save(model, tmp_path)
    described: dict[str, dict[str, Any]] = {
        "int8": {"bits": 8},
        "fp8": {"bits": 8, "format": "e4m3"},
        "int4:32": {"bits": 4, "group_size": 32},
    }
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "quant_method": "dllm",
        "version": 1,
        **described[way],
    }
    for speed in (None, "fused"):
        again = dllm.load(tmp_path, speed=speed)
        assert weights_digest(again) == weights_digest(model)
        torch.testing.assert_close(again.network(tokens()), model.network(tokens()))
        dllm.save(again, tmp_path / "twice")
        twice, once = (load_file(p / "model.safetensors") for p in (tmp_path / "twice", tmp_path))
        assert twice.keys() == once.keys()
        assert all(torch.equal(twice[one], once[one]) for one in once)


def test_a_saved_model_needs_neither_torchao_nor_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dllm.save(dllm.load("tiny", speed="int4"), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    kinds = {tensor.dtype for name, tensor in stored.items() if name.endswith("packed")}
    assert kinds == {torch.uint8}
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr(linear, "find_spec", lambda name: None)
    assert dllm.generate(dllm.load(tmp_path), [QUESTION]).texts == ("53-3=50; #### 50",)
    assert dllm.load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="needs torchao: pip install"):
        dllm.load("tiny", speed="int4")


def saved(tmp_path: Path, **changes: Any) -> Path:
    dllm.save(dllm.load("tiny", speed="int4"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].update(changes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "of version 2, and this dllm reads version 1: take the dllm that wrote"),
        ({"bits": 3}, "'bits': 3.*expected 8 bits, perhaps with format 'e4m3', or 4 bits with g"),
        ({"format": "e5m2"}, "'format': 'e5m2'.*expected 8 bits"),
        ({"bits": 8, "format": "e4m3", "group_size": 64}, "expected 8 bits"),
        ({"group_size": 48}, "'group_size': 48.*expected 8 bits"),
        ({"zeros": "float"}, "'zeros': 'float'.*and nothing else"),
        ({"group_size": 32}, "other shapes than config.json says: .*scale"),
        ({"quant_method": "awq"}, "is quantised .*quant_method='awq'.*weights are read as floats"),
    ],
)
def test_other_roundings_are_refused(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        dllm.load(saved(tmp_path, **changes))


def test_integers_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    stored = load_file(file)
    name = next(one for one in stored if one.endswith("packed"))
    save_file({**stored, name: stored[name].view(torch.int8)}, file)
    with pytest.raises(CheckpointError, match=rf"quantised tensors.*{name} is I8"):
        dllm.load(tmp_path)


def test_the_bits_of_floats_are_no_integers(tmp_path: Path) -> None:
    dllm.save(dllm.load("tiny", speed="fp8"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]["format"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised tensors.*packed is U8"):
        dllm.load(tmp_path)


def test_devices_and_versions_without_floats_of_eight_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dllm.load("tiny", speed="fp8")
    dllm.save(model, tmp_path)
    plain = dllm.load("tiny", speed=None)
    none = r"'fp8' keeps weights as floats of 8 bits, which torch .* not have on mps .*'int8'"
    with pytest.raises(ValueError, match=none):
        check_on(torch.device("mps"), plain, ["fp8"])
    with pytest.raises(ValueError, match=none):
        check_floats(torch.device("mps"))
    check_on(torch.device("mps"), plain, ["int8"])

    def lacks(device: torch.device) -> None:
        raise ValueError(f"no floats on {device}")

    monkeypatch.setattr("dllm.models.loading.check_floats", lacks)
    with pytest.raises(ValueError, match="no floats on cpu"):
        dllm.load(tmp_path)
    monkeypatch.delattr("torchao.quantization.Float8Tensor")
    with pytest.raises(ValueError, match=r"torchao with Float8Tensor, from 0\.13 on, and 0"):
        dllm.load("tiny", speed="fp8")


def test_what_needs_floats_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(ValueError, match=r"adapter='lora' needs float weights, and .* in 4 bits"):
        dllm.load(folder, adapter="lora")
    with pytest.raises(ValueError, match="has rounded weights already: leave 'int8' out"):
        dllm.load(folder, speed="int8")
    experts = dllm.load(GOLDEN / "models" / "llada_moe", speed=None)
    with pytest.raises(ValueError, match=r"'int4' .* experts are slices of one tensor: .*% of the"):
        dllm.speed_up(experts, "int4")


def test_rows_that_are_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups of 256 weights, .* have 128, 384, no multiple"):
        dllm.load("tiny", speed="int4:256")


def test_an_interrupted_saving_leaves_nothing_that_loads(tmp_path: Path) -> None:
    """Over a model that is there already, which is gone from the first byte on."""
    dllm.save(dllm.load("tiny", speed="int8"), tmp_path)
    script = (
        "import os, signal, sys, safetensors.torch as st, dllm\n"
        "real = st.save_file\n"
        "def cut(*given, **named):\n"
        "    real(*given, **named)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "st.save_file = cut\n"
        "dllm.save(dllm.load('tiny', speed='int4'), sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "model.safetensors").exists()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        dllm.load(tmp_path)


def test_estimates_are_the_memory_that_is_taken(tmp_path: Path) -> None:
    name = "llada_gqa"
    for way in ("int8", "fp8", "int4:32"):
        model = dllm.load(GOLDEN / "models" / name, speed=way)
        real = sum(weight.nbytes for weight in model.network.parameters())
        plain = empty_network(golden_model(name).network.config).to(model.dtype)
        (before,) = Room.of("one", plain, {"": "cpu"}, parse_ways(way)).needs.values()
        assert before.weights == real
        dllm.save(model, tmp_path)
        hollow = empty_network(golden_model(name).network.config, parse_rounding(way))
        (after,) = Room.of("one", hollow.to(model.dtype), {"": "cpu"}, ()).needs.values()
        assert (after.weights, after.reading) == (real, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("int8:64", "int8 and fp8 have no options"),
        ("fp8:64", "have no options, one scale a row"),
        ("fp8+int8", "'int8' and 'fp8' both round the weights"),
        ("fp8+fp8", "'fp8' is given twice"),
        ("int4:48", "'int4:48'.*32, 64, 128, 256"),
        ("int4:groups=32", "as in 'int4:group_size=64'"),
        ("int4+int8", "both round the weights"),
        ("int4:32+int4:64", "'int4' is given twice"),
        ("int2", "unknown way to speed a model up 'int2': did you mean"),
    ],
)
def test_words_that_name_no_rounding(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_ways(given)


def test_words_of_roundings() -> None:
    assert parse_ways("int4:64+fused") == ("fused", "int4")
    assert parse_ways("int4:32") == parse_ways("int4:group_size=32") == ("int4:group_size=32",)
    assert parse_ways("fp8+fused") == ("fused", "fp8")
    with pytest.raises(ValueError, match="8 bits with group_size=64"):
        Rounding(8, 64)
    with pytest.raises(ValueError, match="floats of 4 bits"):
        Rounding(4, 64, floating=True)


def test_layers_are_rounded_in_place() -> None:
    exact = golden_model("llada_gqa", "float64")
    with pytest.raises(ValueError, match="'int4' rounds float32, bfloat16 and float16, and"):
        dllm.speed_up(exact, "int4")
    model = golden_model("llada_gqa", "float32")
    model = replace(model, network=deepcopy(model.network))
    rounded = dllm.speed_up(model, "int4:32")
    assert rounded.network is model.network
    assert isinstance(model.network.blocks[0].attention.q, RoundedLinear)  # type: ignore[union-attr]
    assert type(model.network.head) is nn.Linear
