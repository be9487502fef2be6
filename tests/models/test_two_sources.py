"""Facts that a checkpoint states twice, numbers that it cannot mean, and how it is looked up."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm
from dllm.models import CheckpointError, load
from dllm.models.loading.folder import EMBEDDED
from tests.support import GOLDEN


@pytest.fixture
def dream(tmp_path: Path) -> Path:
    return copy("dream_gqa", tmp_path)


@pytest.fixture
def llada(tmp_path: Path) -> Path:
    return copy("llada_gqa", tmp_path)


def copy(name: str, tmp_path: Path) -> Path:
    copied = tmp_path / name
    shutil.copytree(GOLDEN / "models" / name, copied)
    return copied


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Changes keys of a JSON file; `...` removes one."""
    config = {**json.loads((folder / file).read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / file).write_text(json.dumps(kept))


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_bases_must_agree(dream: Path, llada: Path, key: str) -> None:
    for folder, base in ((dream, 1e6), (llada, 5e5)):
        rope: dict[str, Any] = {key: {"rope_type": "default", "rope_theta": base}}
        edit(folder, **rope)
        assert load(folder).network.config.rope_theta == base
        rope[key]["rope_theta"] = 123.0
        edit(folder, **rope)
        said = rf"rope_theta={base}.* and {key}.rope_theta=123.0, which state one fact"
        with pytest.raises(CheckpointError, match=said):
            load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": "dynamic"}, "rope_scaling='dynamic'; supported: an object or null"),
        ({"rope_scaling": [1]}, "rope_scaling=.*an object or null"),
        ({"rope_scaling": 2}, "rope_scaling=2"),
        ({"rope_scaling": False}, "rope_scaling=False"),
        ({"rope_parameters": "x"}, "rope_parameters='x'"),
        ({"rope_scaling": {"rope_type": "default", "type": "yarn"}}, "rope_type='yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "one rotary base for all"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types='sliding_attention'"),
        ({"layer_types": ["full_attention"]}, r"len\(layer_types\)=1; .*num_hidden_layers=3"),
        ({"layer_types": "full_attention"}, "layer_types='full_attention'; supported: a list"),
        ({"use_sliding_window": 0}, "use_sliding_window=0"),
        ({"architectures": [7]}, "architectures=.7.; expected the name of a class"),
        ({"architectures": ["DreamForCausalLM"]}, "did you mean 'DreamModel'"),
        ({"architectures": ["LLaDAForMaskedLM"]}, "did you mean 'LLaDAModelLM'"),
        ({"torch_dtype": 5}, "dtype=5 is not supported"),
        ({"mask_token_id": [126, 125]}, "mask_token_id is .126, 125.; expected one"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>' in config.json"),
        ({"architectures": ["\x1b[31mRed"]}, r"unknown architecture '\\x1b\[31mRed'"),
    ],
)
def test_refused_configurations(dream: Path, changes: Any, message: str) -> None:
    edit(dream, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(dream)


IDS = ["mask_token_id", "eos_token_id", "pad_token_id"]
NUMBERS: dict[str, list[str]] = {
    "dream_gqa": [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "vocab_size", "rms_norm_eps"),
        *("rope_theta", *IDS),
    ],
    "llada_gqa": [
        *("d_model", "mlp_hidden_size", "n_layers", "n_heads", "n_kv_heads"),
        *("max_sequence_length", "embedding_size", "rms_norm_eps", "rope_theta", *IDS),
    ],
    "llada_moe": [
        *("hidden_size", "dense_intermediate_size", "expert_intermediate_size", "num_experts"),
        *("num_experts_per_tok", "num_hidden_layers", "num_attention_heads", *IDS),
        *("num_key_value_heads", "max_position_embeddings", "vocab_size", "rms_norm_eps"),
        *("rope_theta", "moe_layer_freq"),
    ],
    "llada2_moe": [
        *("hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts", "head_dim"),
        *("num_experts_per_tok", "num_shared_experts", "n_group", "topk_group", *IDS),
        *("first_k_dense_replace", "routed_scaling_factor", "partial_rotary_factor", "rotary_dim"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "block_length"),
        *("max_position_embeddings", "vocab_size", "rms_norm_eps", "rope_theta"),
    ],
}
OTHER_FAMILIES = {"head_dim": "SDARForCausalLM", "bd_size": "Fast_dLLM_QwenForCausalLM"}
WRONG: list[Any] = [math.nan, math.inf, True, "4", -1, 10**13, 10**400, {}, [[]]]


@pytest.mark.few(160)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, keys in NUMBERS.items() for key in keys]
)
def test_every_number_of_a_configuration(tmp_path: Path, name: str, key: str, wrong: Any) -> None:
    folder = copy(name, tmp_path)
    edit(folder, **{key: wrong})
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "tensors" not in str(caught.value), "it is found before weights are compared"


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("key", OTHER_FAMILIES)
def test_numbers_of_other_families(dream: Path, key: str, wrong: Any) -> None:
    edit(dream, architectures=[OTHER_FAMILIES[key]], head_dim=16, block_size=4, bd_size=32)
    edit(dream, **{key: wrong})
    with pytest.raises(CheckpointError) as caught:
        load(dream)
    assert "tensors" not in str(caught.value)


@pytest.mark.parametrize("key", ["mask_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ids_outside_the_vocabulary(dream: Path, file: str, key: str) -> None:
    if (file, key) == ("generation_config.json", "mask_token_id"):
        edit(dream, mask_token_id=...)
    for wrong in (-1, 128) if key == "mask_token_id" else (-1, 128, [-1], [127, 500]):
        edit(dream, file, **{key: wrong})
        with pytest.raises(CheckpointError, match=rf"{key}=.* is outside the vocabulary of 128"):
            load(dream)


def test_a_mask_that_ends_or_pads(dream: Path) -> None:
    edit(dream, pad_token_id=126)
    edit(dream, "generation_config.json", pad_token_id=126)
    assert load(dream).spec.pad_token_id == 127, "padding is hidden: any other token will do"
    edit(dream, eos_token_id=[127, 126])
    with pytest.raises(CheckpointError, match="eos_token_id=126 is the mask token"):
        load(dream)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"dtype": "bfloat16"}, "dtype: 'bfloat16' and torch_dtype: 'float32'"),
        ("config.json", {"eos_token_id": 5}, r"config.json has \[127\] and config.json \[5\]"),
        (
            "generation_config.json",
            {"mask_token_id": 9},
            "the mask token differs: config.json: 126",
        ),
    ],
)
def test_two_sources_are_named(
    dream: Path, file: str, changes: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    edit(dream, "generation_config.json", eos_token_id=127, mask_token_id=126)
    load(dream)
    assert not caplog.records
    edit(dream, file, **changes)
    model = load(dream)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(message, record.getMessage())
    assert model.spec.mask_token_id == 126
    assert model.dtype == (torch.bfloat16 if "dtype" in changes else torch.float32)


def test_a_mask_of_another_id_in_the_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(EMBEDDED, folder)
    load(folder)
    assert not caplog.records
    edit(folder, mask_token_id=7)
    edit(folder, "generation_config.json", mask_token_id=7)
    assert load(folder).spec.mask_token_id == 7
    assert "config.json: 7 and the tokenizer: 0" in caplog.text


def test_keys_of_other_families(llada: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(llada, num_attention_heads=8, hidden_size=64)
    assert load(llada).network.config.num_heads == 4
    assert "n_heads=4 and num_attention_heads=8: this family reads n_heads" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 127}, "embedding_size=127; supported: at least vocab_size=128"),
        ({"multi_query_attention": True}, "n_kv_heads=2; supported: 1 where"),
        ({"alibi": 0}, "alibi=0"),
        ({"block_group_size": True}, "block_group_size=True"),
        ({"n_layers": 1001}, "num_layers=1001 must be a whole number from 1 to 1000"),
        ({"n_layers": 10**4}, "num_layers=10000 must be"),
    ],
)
def test_refused_llada_configurations(llada: Path, changes: Any, message: str) -> None:
    edit(llada, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(llada)


def test_an_adapter_is_not_ignored(dream: Path, tmp_path: Path) -> None:
    (dream / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        CheckpointError, match=r"adapter_config.json\) beside a model.*move these.*adapter="
    ):
        load(dream)
    alone = tmp_path / "alone"
    alone.mkdir()
    save_file({"x": torch.zeros(1)}, alone / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds an adapter \(adapter_model.safetensors\)"):
        load(alone)


def test_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be looked at: File name too long"):
        load("x" * 5000)
    wrong: list[Any] = [5, b"tiny", None]
    for name in wrong:
        with pytest.raises(TypeError, match=f"name_or_path is a {type(name).__name__}: give"):
            load(name)


WAY_OUT = "give the checkpoint that it was made from.*speed='int8'"


def test_a_gguf_file_is_named(dream: Path, tmp_path: Path) -> None:
    file = tmp_path / "x-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=rf"holds GGUF files \(x-Q4_K_M.gguf\).*{WAY_OUT}"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=rf"is a GGUF file \(x-Q4_K_M.gguf\).*{WAY_OUT}"):
        load(file)
    shutil.copy(file, dream / "y.GGUF")
    load(dream)  # the floats beside it are what is read
    (dream / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"holds GGUF files \(y.GGUF\).*{WAY_OUT}"):
        load(dream)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quant_method='gptq', bits"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "quantization_config: quant_method='bitsandbytes', load_in_4bit=True",
        ),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "'fp8', fmt='e4m3'"),
        ({"quantization_config": "awq"}, r"has quantization_config\)"),
        ({"compression_config": {"format": "pack"}}, "compression_config: format='pack'"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization: bits=4"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_its_configuration(
    dream: Path, changes: Any, message: str
) -> None:
    edit(dream, **changes)
    with pytest.raises(CheckpointError, match=f"is quantised .*{message}.*{WAY_OUT}"):
        load(dream)


@pytest.mark.parametrize(
    ("dtype", "others", "writer"),
    [
        (torch.uint8, ("weight.absmax", "weight.quant_map"), " of bitsandbytes"),
        (torch.int8, ("SCB",), " of bitsandbytes"),
        (torch.float8_e4m3fn, ("weight_scale_inv",), " of 8-bit floats"),
        (torch.int8, (), ""),
    ],
)
def test_quantised_weights_are_refused_by_their_tensors(
    dream: Path, dtype: torch.dtype, others: tuple[str, ...], writer: str
) -> None:
    tensors, module = load_file(dream / "model.safetensors"), "model.layers.0.self_attn.q_proj"
    tensors[f"{module}.weight"] = tensors[f"{module}.weight"].to(dtype)
    more = {f"{module}.{other}": torch.ones(3) for other in others}
    save_file({**tensors, **more}, dream / "model.safetensors")
    said = f"quantised tensors{writer}: {module}.weight is .*BF16, F16, F32, F64: {WAY_OUT}"
    with pytest.raises(CheckpointError, match=said):
        load(dream)


@pytest.mark.parametrize(
    ("ends", "writer"),
    [
        (("qweight", "qzeros", "scales", "g_idx"), "GPTQ or AWQ"),
        (("weight_packed", "weight_shape"), "compressed-tensors"),
    ],
)
def test_packed_weights_have_other_names(dream: Path, ends: tuple[str, ...], writer: str) -> None:
    tensors, module = load_file(dream / "model.safetensors"), "model.layers.0.self_attn.q_proj"
    del tensors[f"{module}.weight"]
    more = {f"{module}.{end}": torch.ones(3, dtype=torch.int32) for end in ends}
    save_file({**tensors, **more}, dream / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tensors of {writer}: {module}.*I32.*{WAY_OUT}"):
        load(dream)


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        (lambda name: f"base_model.model.{name}", "stored with the prefix 'base_model.model.'"),
        (lambda name: name.removeprefix("model."), "stored without the prefix 'model.'"),
    ],
)
def test_names_with_another_prefix(dream: Path, renamed: Any, message: str) -> None:
    tensors = load_file(dream / "model.safetensors")
    save_file({renamed(k): v.clone() for k, v in tensors.items()}, dream / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(dream)


def test_stored_positions_are_no_quantised_weights(dream: Path) -> None:
    tensors = load_file(dream / "model.safetensors")
    extra = {"model.embeddings.position_ids": torch.arange(4)}
    save_file({**tensors, **extra}, dream / "model.safetensors")
    edit(dream, torch_dtype=...)
    assert load(dream).dtype == torch.float32
    save_file({**tensors, "model.steps": torch.arange(4)}, dream / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors are not of this .*: model.steps \[4\]"):
        load(dream)


def test_a_subfolder(dream: Path) -> None:
    inside = load(dream.parent, subfolder=dream.name, cache_dir=dream, local_files_only=True)
    assert inside.spec == load(dream).spec
    for wrong in ("../x", "/x", "a/../../b"):
        with pytest.raises(ValueError, match="must lie inside the checkpoint"):
            load(dream, subfolder=wrong)


def test_the_hub_is_asked_as_transformers_asks(
    llada: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def config(name: str, file: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(llada / file)

    def snapshot(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(llada.parent)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", config)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    options: dict[str, Any] = {
        "revision": "r1",
        "token": "t",
        "cache_dir": "c",
        "local_files_only": True,
    }
    model = load("owner/name", subfolder=llada.name, **options)
    assert model.spec.mask_token_id == 126
    first, second = asked
    assert first == {"name": "owner/name", "subfolder": llada.name, **options}
    patterns = second.pop("allow_patterns")
    assert second == {"name": "owner/name", **options}
    assert f"{llada.name}/*.safetensors" in patterns
    asked.clear()
    tokenizer = load("tiny").tokenizer
    assert tokenizer is not None
    tokenizer.save_pretrained(llada.parent)
    words = load(llada, tokenizer="owner/words", token="t").tokenizer
    assert words is not None
    (only,) = asked
    assert (only["name"], only["revision"], only["token"]) == ("owner/words", None, "t")
    assert "*.safetensors" not in only["allow_patterns"]


def test_another_tokenizer(llada: Path) -> None:
    known = load("tiny").tokenizer
    for given in ("tiny", EMBEDDED, str(EMBEDDED), known):
        model = load(llada, tokenizer=given)
        assert model.tokenizer is not None
        assert model.tokenizer.encode("hello") == known.encode("hello")  # type: ignore[union-attr]
        assert dllm.generate(model, "tom", max_new_tokens=4).texts is not None
    with pytest.raises(CheckpointError, match="has no tokenizer files"):
        load(llada, tokenizer=llada)
    with pytest.raises(CheckpointError, match="'nowhere' is not an existing folder, nor a hub id"):
        load(llada, tokenizer="nowhere")
    wrong: Any = 5
    with pytest.raises(TypeError, match="tokenizer=int must be a folder, a hub id or a tokenizer"):
        load(llada, tokenizer=wrong)
