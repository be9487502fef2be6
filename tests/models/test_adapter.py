"""LoRA adapters: the merged weights are the explicit sum, and what is no plain LoRA is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dllm
from dllm.eval.ablation.ablation import with_model
from dllm.eval.ablation.bench import key_of
from dllm.eval.ablation.read import read_ablation
from dllm.eval.lm_eval.arguments import ArgumentError, load_model, read_arguments
from dllm.eval.run.describe import Setup
from dllm.eval.tasks import find_task
from dllm.models import CheckpointError, load, save
from dllm.models.families import FAMILIES
from dllm.models.loading.adapter import Adapter
from dllm.settings import Settings
from tests.support import GOLDEN
from tests.support.oracles import hosted

DREAM = GOLDEN / "models" / "dream_gqa"
EVERY = pytest.mark.parametrize("architecture", FAMILIES)
RANK, ALPHA = 3, 5
Q = "model.layers.0.self_attn.q_proj"


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], modules: list[str], **changes: Any
) -> Path:
    """Writes a random LoRA of modules of a checkpoint, as peft names them; returns its folder."""
    folder.mkdir(exist_ok=True)
    source = torch.Generator().manual_seed(5)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": "",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "init_lora_weights": True,
        "peft_version": "0.18.0",
    } | changes
    pairs = {}
    for name in modules:
        rank = config.get("rank_pattern", {}).get(name.rpartition(".")[2], config["r"])
        rows, columns = tensors[f"{name}.weight"].shape
        before = f"base_model.model.{name}.lora_"
        pairs[f"{before}A.weight"] = torch.randn(rank, columns, generator=source) / 4
        pairs[f"{before}B.weight"] = torch.randn(rows, rank, generator=source) / 4
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(pairs, folder / "adapter_model.safetensors")
    return folder


def linear_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns every module of a checkpoint's layers whose weight is a matrix."""
    names = [name for name, tensor in tensors.items() if tensor.dim() == 2]
    return [name.removesuffix(".weight") for name in names if re.search(r"\.\d+\.", name)]


def merged(
    tensors: Mapping[str, Tensor], adapter: Path, scale: Callable[[str], float]
) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors with the sum written out, in float64."""
    pairs, result = load_file(adapter / "adapter_model.safetensors"), dict(tensors)
    for name, tensor in tensors.items():
        before = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{before}A.weight" in pairs:
            a, b = pairs[f"{before}A.weight"].double(), pairs[f"{before}B.weight"].double()
            product = (b[:, :, None] * a[None]).sum(1)
            result[name] = (tensor.double() + scale(name) * product).to(tensor.dtype)
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "dream"
    shutil.copytree(DREAM, copied)
    return copied


def check_merged(folder: Path, adapter: Path, scale: Callable[[str], float], **how: Any) -> None:
    """Compares the weights under the checkpoint's names with the explicit sum."""
    model = load(folder, adapter=adapter, **how)
    save(model, folder.parent / "saved")
    expected = merged(load_file(folder / "model.safetensors"), adapter, scale)
    found = load_file(folder.parent / "saved" / "model.safetensors")
    changed = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor, load_file(folder / "model.safetensors")[name])
    assert changed == len(load_file(adapter / "adapter_model.safetensors")) // 2


@pytest.mark.few(2)
@EVERY
@pytest.mark.parametrize("speed", [None, "fused"])
def test_every_matrix_of_every_family(architecture: str, speed: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    plain = hosted(architecture, folder)
    tensors = load_file(folder / "model.safetensors")
    modules = linear_of(tensors)
    assert len(modules) >= 3 * 5  # of three layers, and of all experts where there are some
    adapter = write_adapter(tmp_path / "lora", tensors, modules)
    check_merged(folder, adapter, lambda _: ALPHA / RANK, speed=speed)
    model, tokens = load(folder, adapter=adapter), torch.arange(12)[None]
    assert not torch.allclose(model.network(tokens), plain.network(tokens), atol=1e-2)
    block = model.spec.block_length or 8
    dllm.generate(model, [[3, 4, 5]], max_new_tokens=2 * block, block_length=block)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_sums_are_wide_and_then_cast(folder: Path, tmp_path: Path, dtype: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    narrow = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(narrow, folder / "model.safetensors")
    adapter = write_adapter(tmp_path / "lora", tensors, [Q])
    found = load(folder, dtype=dtype, adapter=adapter).network.get_parameter(
        "blocks.0.attention.q.weight"
    )
    pairs = load_file(adapter / "adapter_model.safetensors")
    a, b = (pairs[f"base_model.model.{Q}.lora_{side}.weight"] for side in "AB")
    wide = narrow[f"{Q}.weight"].float() + ALPHA / RANK * (b @ a)
    tolerance = 1e-6 if dtype == "float64" else 2.0**-8
    torch.testing.assert_close(found, wide.to(found.dtype), rtol=tolerance, atol=tolerance * 0.1)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, lambda name: ALPHA / RANK),
        ({"use_rslora": True}, lambda name: ALPHA / math.sqrt(RANK)),
        ({"lora_alpha": 0.5}, lambda name: 0.5 / RANK),
        ({"rank_pattern": {"q_proj": 2}}, lambda name: ALPHA / (2 if "q_proj" in name else RANK)),
        (
            {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
            lambda name: ALPHA / math.sqrt(2 if "q_proj" in name else RANK),
        ),
        (
            {"alpha_pattern": {"layers.1.self_attn.q_proj": 7, "q_proj": 2}},
            lambda name: (7 if ".1." in name else 2) / RANK if "q_proj" in name else ALPHA / RANK,
        ),
        (
            {"alpha_pattern": {r"^model.layers.\d.mlp.up_proj": 7, "roj": 99}},
            lambda name: (7 if "up_proj" in name else ALPHA) / RANK,
        ),
    ],
)
def test_scales(folder: Path, tmp_path: Path, changes: Any, scale: Callable[[str], float]) -> None:
    tensors = load_file(folder / "model.safetensors")
    modules = [name for name in linear_of(tensors) if name.endswith(("q_proj", "up_proj"))]
    check_merged(folder, write_adapter(tmp_path / "lora", tensors, modules, **changes), scale)


def test_an_adapted_model_is_another_one(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    adapter = write_adapter(tmp_path / "lora", tensors, [Q])
    idle = tmp_path / "idle"
    shutil.copytree(adapter, idle)
    pairs = load_file(idle / "adapter_model.safetensors")
    save_file(
        {name: 0 * tensor for name, tensor in pairs.items()}, idle / "adapter_model.safetensors"
    )
    task, settings = find_task("arithmetic"), Settings()
    models = [load(folder), load(folder, adapter=adapter), load(folder, adapter=idle)]
    assert [model.name for model in models] == [
        str(folder),
        f"{folder}+{adapter}",
        f"{folder}+{idle}",
    ]
    described = [Setup(model, task, settings).describe() for model in models]
    assert len({Setup(model, task, settings).name for model in models}) == 3
    assert described[0]["checkpoint"] != described[1]["checkpoint"]
    assert described[0]["checkpoint"] == described[2]["checkpoint"]  # nothing was added


def test_an_adapter_of_another_base_is_warned_of(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(folder / "model.safetensors")
    for base, warned in (("owner/Dream-v0-Base-7B", True), ("somebody/dream", False), ("", False)):
        caplog.clear()
        adapter = write_adapter(tmp_path / "lora", tensors, [Q], base_model_name_or_path=base)
        load(folder, adapter=adapter)
        assert ("base_model_name_or_path='owner/Dream-v0-Base-7B'" in caplog.text) == warned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA'; merged here is: \"LORA\""),
        ({"peft_type": None}, "peft_type=None"),
        ({"bias": "lora_only"}, "bias='lora_only'; merged here is: \"none\""),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"use_dora": True}, "use_dora=True; merged here is: the key left out, null or false"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"of_tomorrow": 1}, "of_tomorrow=1"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'.*gaussian"),
        ({"init_lora_weights": []}, "init_lora_weights"),
        ({"lora_alpha": "5"}, f"lora_alpha of {Q}='5'; merged here is: a number"),
        ({"lora_alpha": True}, "lora_alpha of .*=True"),
        ({"use_rslora": "yes"}, "use_rslora='yes'; merged here is: true or false"),
        ({"alpha_pattern": [1]}, r"alpha_pattern=\[1\]; merged here is: an object"),
        ({"alpha_pattern": {"(": 1}}, r"a pattern='\('; merged here is: a regular expression"),
        ({"alpha_pattern": {"(a+)+": 1}}, r"a pattern='\(a\+\)\+'.*without repeats"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, "without repeats"),
        ({"rank_pattern": {"^model.*": 0}}, f"r of {Q}=0; merged here is: a positive integer"),
        (
            {"rank_pattern": {"^model.*": 2}},
            rf"{Q} \[64, 64\] with A \[3, 64\] and B \[64, 3\] of ",
        ),
    ],
)
def test_refused_configurations(folder: Path, tmp_path: Path, changes: Any, message: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    adapter = write_adapter(tmp_path / "lora", tensors, [Q], **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder, adapter=adapter)
    assert "merge_and_unload" in str(caught.value) or "of rank" in str(caught.value)


BEFORE = f"base_model.model.{Q}.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{BEFORE}A.weight"), f"there is {Q} has no lora_A.weight"),
        (lambda t: t.pop(f"{BEFORE}B.weight"), f"there is {Q} has no lora_B.weight"),
        (dict.clear, "there is no tensor at all"),
        (
            lambda t: t.update({f"{BEFORE}magnitude_vector": torch.ones(3)}),
            "lora_magnitude_vector F32",
        ),
        (
            lambda t: t.update(
                {"base_model.model.model.embed_tokens.lora_embedding_A": t.popitem()[1]}
            ),
            "lora_embedding_A F32",
        ),
        (
            lambda t: t.update({f"{BEFORE}A.weight": torch.ones(3, 64, dtype=torch.int8)}),
            "lora_A.weight I8",
        ),
        (
            lambda t: t.update({f"{BEFORE}A.weight": torch.ones(3, 63)}),
            rf"shapes of 1 modules do not fit.*{Q} \[64, 64\] with A \[3, 63\]",
        ),
        (
            lambda t: t.update({f"{BEFORE}B.weight": torch.ones(3, 64)}),
            r"B \[3, 64\] of rank 3",
        ),
        (
            lambda t: t.update(
                {
                    f"base_model.model.model.norm.lora_{side}.weight": torch.ones(3, 3)
                    for side in "AB"
                }
            ),
            r"model.norm \[64\] with A \[3, 3\]",
        ),
        (
            lambda t: t.update(
                {name.replace("layers.0", "layers.9"): tensor.clone() for name, tensor in t.items()}
            ),
            r"adapts 1 modules that are no weights of this model: model.layers.9.self_attn.q_proj; "
            r"it has .*q_proj, up_proj",
        ),
    ],
)
def test_refused_tensors(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    adapter = write_adapter(tmp_path / "lora", load_file(folder / "model.safetensors"), [Q])
    pairs = load_file(adapter / "adapter_model.safetensors")
    change(pairs)
    save_file(pairs, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(folder, adapter=adapter)


def test_a_tied_head_has_no_weight_of_its_own(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    adapter = write_adapter(tmp_path / "lora", tensors, ["lm_head"])
    check_merged(folder, adapter, lambda _: ALPHA / RANK)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match=r"no weights of this model: lm_head; .*tied"):
        load(folder, adapter=adapter)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json, so it is no"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "holds a list"),
        (
            lambda f: (f / "adapter_config.json").write_text('{"r": 1, "r": 2}'),
            "the key 'r' stands twice",
        ),
        (lambda f: (f / "adapter_config.json").write_text('{"r": NaN}'), "NaN is no JSON number"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "has no adapter_model.safetensors; adapter_model.bin is a pickle.*safe_serialization",
        ),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"\0" * 9),
            "truncated or corrupt",
        ),
        (shutil.rmtree, r"adapter='.*lora': .*is not an existing folder, nor a hub id"),
    ],
)
def test_broken_folders(
    folder: Path, tmp_path: Path, break_it: Callable[[Path], Any], message: str
) -> None:
    adapter = write_adapter(tmp_path / "lora", load_file(folder / "model.safetensors"), [Q])
    break_it(adapter)
    with pytest.raises(CheckpointError, match=message):
        load(folder, adapter=adapter)


def test_a_run_of_an_ablation_and_of_the_harness_may_have_one(folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", load_file(folder / "model.safetensors"), [Q])
    file = tmp_path / "mine.yaml"
    common = {"about": "x", "common": {"model": str(folder), "task": "arithmetic"}}
    rows = [{"name": "plain"}, {"name": "adapted", "adapter": str(adapter)}]
    file.write_text(json.dumps({**common, "settings": rows}))
    plain, adapted = read_ablation(file).rows
    assert (plain.whole, adapted.whole) == (str(folder), f"{folder}+{adapter}")
    assert plain.loaded != adapted.loaded
    task = find_task("arithmetic")
    before = key_of(adapted, task)
    assert before != key_of(plain, task)
    (adapter / "adapter_config.json").write_text("{}")
    assert before != key_of(adapted, task)
    (other, _) = with_model(read_ablation(file), "tiny", None, "a").rows
    assert other.whole == "tiny+a"
    with pytest.raises(ValueError, match="--adapter 'a': name the model that it is of"):
        with_model(read_ablation(file), None, None, "a")
    given = read_arguments({"pretrained": str(folder), "adapter": str(adapter)})
    with pytest.raises(ArgumentError, match=r"--model_args: .*peft_type=None"):
        load_model(given, "cpu")


def test_an_adapter_is_a_path(folder: Path) -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="adapter is a int: give a folder"):
        load(folder, adapter=wrong)


def test_patterns_of_one_length_end_at_once() -> None:
    """The slowest pattern that is let through, on the longest name."""
    adapter = Adapter(Path("none"))
    assert not adapter._matches(".*.*[a-z.]+y$", "model.layers.0.self_attn.q_proj" * 4)
