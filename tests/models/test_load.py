"""Loading and saving checkpoint folders, and every loud refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from dllm.models import CheckpointError, HostedModel, load, save
from dllm.state.plan import StepPlan
from tests.support import GOLDEN

MODELS = GOLDEN / "models"
TOKENS = torch.arange(20).reshape(2, 10)


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes keys of a config.json; `...` removes one."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LLaDA checkpoint that a test may damage."""
    copied = tmp_path / "llada"
    shutil.copytree(MODELS / "llada_gqa", copied)
    return copied


@pytest.fixture
def dream(tmp_path: Path) -> Path:
    copied = tmp_path / "dream"
    shutil.copytree(MODELS / "dream_gqa", copied)
    return copied


def logits(model: HostedModel) -> Tensor:
    result: Tensor = model.network(TOKENS)
    return result


def test_settings_of_the_checkpoint_are_read(dream: Path) -> None:
    model = load(dream)
    assert model.name == str(dream)
    assert model.defaults["steps"] == 64
    assert model.tokenizer is None
    assert model.spec.mask_token_id == 126
    assert model.spec.max_length == 256
    assert model.dtype == torch.float32
    assert model.supports_cache
    assert not model.network.training
    assert not any(weight.requires_grad for weight in model.network.parameters())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float64", torch.float64),
        ("torch.float32", torch.float32),
        (torch.float16, torch.float16),
        ("auto", torch.float32),
        (None, torch.float32),
    ],
)
def test_dtype(folder: Path, given: Any, expected: torch.dtype) -> None:
    weights = load(folder, dtype=given).network.parameters()
    assert {weight.dtype for weight in weights} == {expected}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_own_dtype_is_that_of_the_configuration(folder: Path, key: str) -> None:
    edit_config(folder, **{"torch_dtype": ..., key: "bfloat16"})
    assert load(folder).dtype == torch.bfloat16


def test_own_dtype_is_that_of_the_tensors_when_the_configuration_has_none(folder: Path) -> None:
    edit_config(folder, torch_dtype=...)
    edit_tensors(folder, lambda t: t.update({k: v.half() for k, v in t.items()}))
    assert load(folder).dtype == torch.float16


@pytest.mark.parametrize("given", ["int8", "float", torch.int64])
def test_wrong_dtype(folder: Path, given: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype=.*known: auto, float64.*bf16"):
        load(folder, dtype=given)


def test_wrong_dtype_of_the_configuration(folder: Path) -> None:
    edit_config(folder, torch_dtype="float8")
    with pytest.raises(CheckpointError, match=r"config.json: dtype='float8'"):
        load(folder)


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto", "cpu"])
def test_device_map(folder: Path, device_map: Any) -> None:
    model = load(folder, device_map=device_map)
    assert torch.equal(logits(model), logits(load(folder)))


def cached_logits(model: HostedModel) -> Tensor:
    columns = torch.arange(TOKENS.shape[1], device=model.device).expand(*TOKENS.shape)
    store = model.new_store(*TOKENS.shape)
    plan = StepPlan("refresh", columns, columns, columns.shape[1], stored=columns)
    return model.forward(TOKENS.to(model.device), plan, store)


def test_offloaded_layers_compute_where_they_should(folder: Path) -> None:
    model, expected = load(folder), logits(load(folder))
    accelerate.cpu_offload(model.network, torch.device("cpu"))
    assert next(model.network.blocks[0].parameters()).is_meta
    assert model.device.type == "cpu"
    torch.testing.assert_close(cached_logits(model), expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="is offloaded; load it on one device"):
        save(model, folder / "copy")


@pytest.mark.gpu
def test_layers_on_two_devices(folder: Path) -> None:
    device_map = dict.fromkeys(["embedding", "blocks.0", "blocks.2", "norm", "head"], 0)
    model = load(folder, device_map={**device_map, "blocks.1": "cpu"})
    given = cached_logits(model).cpu()
    torch.testing.assert_close(given, logits(load(folder)), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"device_map": "balanced"}, "device_map='balanced' must be 'auto' or a mapping, or a dev"),
        ({"device_map": {"blocks": "cpu"}}, "no device for embedding.weight"),
        ({"device_map": {"": "cpu", "blocks.1": "disk"}}, "puts blocks.1 on disk"),
        ({"revision": "main"}, "revision='main' is for hub ids"),
    ],
)
def test_wrong_options(folder: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(folder, **options)


def test_missing_folder(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not an existing folder, nor a hub id"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nor 'tiny'"):
        load("tinny")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        load(folder / "config.json")


def test_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="download the folder elsewhere and give its path"):
        load("owner/no-such-model")


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        load(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ("[]", "holds a list")])
def test_damaged_config(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LLaDAModel"]}, r"unknown architecture 'LLaDAModel'.*LLaDAModelLM"),
        ({"architectures": ...}, r"architectures=None"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"alibi": True}, "alibi=True; supported: False"),
        ({"scale_logits": True}, "scale_logits=True"),
        ({"input_emb_norm": True}, "input_emb_norm=True"),
        ({"attention_layer_norm": True}, "attention_layer_norm=True"),
        ({"block_group_size": 2}, "block_group_size=2; supported: 1"),
        ({"layer_norm_type": "low_precision"}, "layer_norm_type='low_precision'"),
        ({"block_type": "sequential"}, "block_type='sequential'; supported: 'llama'"),
        ({"include_bias": True}, "include_bias=True"),
        ({"include_qkv_bias": True}, "include_qkv_bias=True"),
        ({"bias_for_layer_norm": True}, "bias_for_layer_norm=True"),
        ({"n_layers": ...}, "LLaDAModelLM has no 'n_layers'"),
        ({"n_heads": 5}, "d_model=64; supported: a multiple of n_heads=5"),
        ({"n_kv_heads": 3}, "num_kv_heads=3"),
        ({"rms_norm_eps": -1}, "rms_norm_eps=-1; supported: a positive number"),
        ({"n_layers": True}, "n_layers=True; supported: a positive integer"),
        ({"mask_token_id": 128}, "mask_token_id=128 is outside the vocabulary of 128"),
        ({"mask_token_id": "x"}, "mask_token_id is 'x'"),
        ({"mask_token_id": ...}, r"no mask_token_id, and there is no tokenizer .*<\|mdm_mask\|>"),
        ({"eos_token_id": ...}, "no eos_token_id"),
        ({"max_sequence_length": ...}, "no 'max_sequence_length'"),
    ],
)
def test_refused_llada_configurations(folder: Path, changes: Any, message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; supported: 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"use_mrope": True}, "use_mrope=True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_type='yarn'"),
        ({"num_attention_heads": 5}, "hidden_size=64; supported: a multiple of"),
        ({"architectures": ["ILLaDAForCausalLM"], "layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
        ({"architectures": ["ILLaDAForCausalLM"], "mlp_bias": True}, "mlp_bias=True"),
        ({"architectures": ["SDARForCausalLM"]}, "no 'head_dim'"),
        ({"architectures": ["SDARForCausalLM"], "num_experts": 8}, "num_experts=8"),
        ({"architectures": ["Fast_dLLM_QwenForCausalLM"]}, "no 'bd_size'"),
        (
            {"architectures": ["Fast_dLLM_QwenForCausalLM"], "layer_types": ["sliding_attention"]},
            "layer_types='sliding_attention'",
        ),
        ({"architectures": ["WeDLMForCausalLM"], "qk_norm": 1}, "qk_norm=1; supported: true or"),
        ({"architectures": ["WeDLMForCausalLM"], "attention_bias": "no"}, "attention_bias='no'"),
        ({"architectures": ["WeDLMForCausalLM"], "hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"architectures": ["WeDLMForCausalLM"], "rope_theta": 0}, "rope_theta=0; supported"),
        ({"architectures": ["StableDiffcoderForCausalLM"], "mlp_bias": True}, "mlp_bias=True"),
        ({"architectures": ["SeedDiffcoderForCausalLM"], "block_length": 0}, "block_length=0"),
        ({"architectures": ["RND1LM"], "is_causal": True}, "is_causal=True; supported: False"),
        (
            {
                "architectures": ["RND1LM"],
                "attention_bias": True,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 8,
            },
            "attention_bias=True",
        ),
        ({"architectures": ["RND1Model"], "mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]"),
        ({"architectures": ["RND1Model"]}, "has no 'num_experts'"),
    ],
)
def test_refused_qwen_configurations(dream: Path, changes: Any, message: str) -> None:
    edit_config(dream, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(dream)


def test_what_a_wedlm_configuration_leaves_out(dream: Path) -> None:
    """It is as in its authors' class: a Qwen2 block such as Dream's, with a rotary base of 1e4."""
    edit_config(dream, architectures=["WeDLMForCausalLM"], rope_theta=...)
    model = load(dream)
    network = model.network.config
    assert (network.qkv_bias, network.qk_norm, network.rope_theta) == (True, False, 1e4)
    assert (model.spec.attention, model.spec.block_length) == ("masks_last", 16)
    edit_config(dream, attention_bias=False)
    with pytest.raises(CheckpointError, match="are not of this"):
        load(dream)


def test_rope_base_as_transformers_5_writes_it(dream: Path) -> None:
    expected = logits(load(dream))
    edit_config(dream, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert torch.equal(logits(load(dream)), expected)


def test_multi_query_attention_and_mlp_ratio(folder: Path) -> None:
    edit_config(
        folder, n_kv_heads=..., multi_query_attention=True, mlp_hidden_size=..., mlp_ratio=2
    )

    def first_head(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "k_proj" in name or "v_proj" in name:
                tensors[name] = tensor[:16].clone()

    edit_tensors(folder, first_head)
    config = load(folder).network.config
    assert (config.num_kv_heads, config.intermediate_size) == (1, 128)


NORM = "model.transformer.ln_f.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"1 tensors are missing: {NORM} \[64\]"),
        (lambda t: t.update(extra=torch.zeros(3)), r"1 tensors are not of this .*: extra \[3\]"),
        (
            lambda t: t.update({NORM: torch.zeros(65)}),
            rf"other shapes .*{NORM} \[65\]; expected {NORM} \[64\]",
        ),
        (lambda t: t.update({NORM: torch.zeros(64, dtype=torch.int8)}), "quantised tensors.*I8"),
        (
            lambda t: [t.pop(name) for name in list(t) if "blocks.1" in name],
            r"9 tensors are missing: .*attn_norm.*and 4 more",
        ),
    ],
)
def test_wrong_tensors(folder: Path, change: Any, message: str) -> None:
    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_stored_rotary_tables_are_ignored(dream: Path) -> None:
    expected = logits(load(dream))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(dream, lambda t: t.update({name: torch.zeros(8)}))
    assert torch.equal(logits(load(dream)), expected)


def test_truncated_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"truncated or corrupt.*download it again"):
        load(folder)


def test_corrupt_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4000)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load(folder)


def test_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"Git LFS pointer.*git lfs pull"):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"pickle \({name}\).*safetensors.torch.save_file"):
        load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "ref_logits.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        load(folder)


@pytest.fixture
def sharded(folder: Path, tmp_path: Path) -> Path:
    model = load(folder)
    save(model, tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


INDEX = "model.safetensors.index.json"


def test_sharded(sharded: Path, folder: Path) -> None:
    assert not (sharded / "model.safetensors").exists()
    assert torch.equal(logits(load(sharded)), logits(load(folder)))


def test_absent_shard(sharded: Path) -> None:
    next(iter(sorted(sharded.glob("*.safetensors")))).unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of \d weight files.*model-00001-of"):
        load(sharded)


def test_index_that_names_what_no_shard_holds(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["ghost"] = index["weight_map"][NORM]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names tensors that no file holds: ghost"):
        load(sharded)


def test_index_that_leaves_the_folder(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = "../llada/model.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        load(sharded)


def test_index_without_a_map(sharded: Path) -> None:
    (sharded / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load(sharded)


@pytest.mark.parametrize("source", ["llada_gqa", "dream_gqa"])
def test_save_and_load_round_trip(source: str, tmp_path: Path) -> None:
    model = load(MODELS / source)
    save(model, tmp_path)
    theirs = load_file(MODELS / source / "model.safetensors")
    ours = load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    again = load(tmp_path)
    assert (again.spec, again.defaults, again.config) == (model.spec, model.defaults, model.config)
    assert torch.equal(logits(again), logits(model))


def test_save_in_another_dtype_says_so(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, torch_dtype=..., dtype="float32")
    save(load(folder, dtype="bf16"), tmp_path / "copy")
    assert load(tmp_path / "copy").dtype == torch.bfloat16


def test_weights_do_not_change_with_the_file(folder: Path) -> None:
    model, file = load(folder), folder / "model.safetensors"
    expected = logits(model)
    with file.open("r+b") as raw:
        raw.write(bytes(file.stat().st_size))
    assert torch.equal(logits(model), expected)


def test_save_over_what_was_loaded(folder: Path) -> None:
    model = load(folder)
    expected = logits(model)
    save(model, folder)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(load(folder)), expected)


def test_save_needs_a_config(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no config, so its family is unknown"):
        save(replace(load(folder), config={}), folder / "copy")


EMBEDDING, HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"


def test_tied_head(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, weight_tying=True)
    with pytest.raises(
        CheckpointError, match=r"ties model.*ff_out.weight to model.*wte.weight, but .* differ"
    ):
        load(folder)
    edit_tensors(folder, lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    stored = load(folder)
    edit_tensors(folder, lambda t: t.pop(HEAD))
    tied = load(folder)
    assert tied.network.head.weight is tied.network.embedding.weight
    assert torch.equal(logits(stored), logits(tied))
    save(tied, tmp_path / "copy")
    assert HEAD not in load_file(tmp_path / "copy" / "model.safetensors")
    assert torch.equal(logits(load(tmp_path / "copy")), logits(tied))


def test_untied_head_must_be_stored(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.pop(HEAD))
    with pytest.raises(CheckpointError, match=f"missing: {HEAD}"):
        load(folder)


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]


def write_byte_level_tokenizer(folder: Path) -> int:
    """Writes a small vocabulary as Dream ships its own; returns the first special id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:100]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]
    pieces = [*letters, *(first + second for first, second in merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = "\n".join(f"{first} {second}" for first, second in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}\n")
    entry = {"special": True, "normalized": False, "lstrip": False, "rstrip": False}
    added = {
        str(len(pieces) + index): {"content": text, "single_word": False, **entry}
        for index, text in enumerate(SPECIAL)
    }
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(pieces)


def test_tokenizer_as_dream_ships_it(dream: Path, tmp_path: Path) -> None:
    first = write_byte_level_tokenizer(dream)
    edit_config(dream, mask_token_id=...)
    model = load(dream)
    assert model.spec.mask_token_id == first + 4
    assert model.spec.eos_token_ids == (127, first, first + 2)
    assert model.tokenizer is not None
    ids = model.tokenizer("hello<|mask|>").input_ids
    assert ids == [103, first + 4]
    chat = [{"role": "user", "content": "hello"}]
    text = model.tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|im_start|>hello<|im_end|>"
    save(model, tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert again.tokenizer is not None
    assert again.tokenizer("hello<|mask|>").input_ids == ids
    assert again.tokenizer.apply_chat_template(chat, tokenize=False) == text
    assert again.spec == model.spec


def test_tokenizer_json_of_an_unknown_class(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "<|mdm_mask|>": 126}, "[UNK]"))
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": ["x.y", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    edit_config(folder, mask_token_id=...)
    assert load(folder).spec.mask_token_id == 126


def test_mask_that_the_tokenizer_lacks_is_not_the_unknown_token(folder: Path) -> None:
    Tokenizer(models.WordLevel({"[UNK]": 1}, "[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]"}))
    edit_config(folder, mask_token_id=...)
    with pytest.raises(CheckpointError, match=r"tokenizer has no <\|mdm_mask\|>"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{}", r"has vocab.json but no complete tokenizer; needed: tokenizer.json"),
        ("tokenizer.model", "", "tokenizer.model but no complete tokenizer"),
        ("tokenizer.json", "{", "tokenizer files .* cannot be read"),
    ],
)
def test_damaged_tokenizer(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_end_tokens_of_both_configurations(dream: Path) -> None:
    (dream / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 127]}))
    spec = load(dream).spec
    assert spec.eos_token_ids == (5, 127)
    edit_config(dream, pad_token_id=...)
    assert load(dream).spec.pad_token_id == 5


def test_the_expand_token_is_found_by_its_name(dream: Path, tmp_path: Path) -> None:
    assert load(dream).spec.expand_token_id is None
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "<|expand|>": 11}, "[UNK]"))
    words.save(str(dream / "tokenizer.json"))
    (dream / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]"}))
    model = load(dream)
    assert model.spec.expand_token_id == 11
    save(model, tmp_path / "saved")
    assert load(tmp_path / "saved").spec == model.spec
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "<|expand|>": 128}, "[UNK]"))
    words.save(str(dream / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="expand_token_id=128 is outside the vocabulary"):
        load(dream)
