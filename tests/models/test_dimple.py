"""Dimple: the text of a model with a vision tower, which stays in its files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import dllm
from dllm.models import CheckpointError, load, save
from tests.support.oracles import VOCABULARY, hosted

TOWER = {
    "visual.blocks.0.attn.qkv.weight": torch.ones(6, 2),
    "visual.patch_embed.proj.weight": torch.ones(2, 3, 2, 4, 4),
    "img_projector.linear_1.bias": torch.ones(4),
}
PROMPTS = [[3, 4, 5], [6] * 7]
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "scheduler": "threshold:0.3"}


def add(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file)


def test_the_tower_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text = hosted("DimpleModel", tmp_path)
        assert not caplog.text
        add(tmp_path, TOWER)
        whole = load(tmp_path)
    assert "3 tensors of parts that are not hosted are left out: img_projector.lin" in caplog.text
    assert "visual.blocks.0.attn.qkv.weight [6, 2]" in caplog.text
    expected = dllm.generate(text, PROMPTS, **OPTIONS).sequences
    assert dllm.generate(whole, PROMPTS, **OPTIONS).sequences == expected
    save(whole, tmp_path / "saved")
    assert not set(TOWER) & set(load_file(tmp_path / "saved" / "model.safetensors"))
    assert dllm.generate(load(tmp_path / "saved"), PROMPTS, **OPTIONS).sequences == expected


def test_other_tensors_are_refused_beside_the_tower(tmp_path: Path) -> None:
    hosted("DimpleModel", tmp_path)
    add(tmp_path, {**TOWER, "model.visual_gate.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"1 tensors are not .*: model\.visual_gate"):
        load(tmp_path)


def test_causal_attention_is_refused(tmp_path: Path) -> None:
    hosted("DimpleModel", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "full_attn_mask": False}))
    with pytest.raises(CheckpointError, match="full_attn_mask=False; supported: True"):
        load(tmp_path)


def test_images_are_refused_by_name(tmp_path: Path) -> None:
    hosted("DimpleModel", tmp_path)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = load(tmp_path, tokenizer=tokenizer)
    parts = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "w3"}]
    chat: Any = [{"role": "user", "content": parts}]
    with pytest.raises(ValueError, match=r"'image'.*images and videos are not read"):
        dllm.generate(model, chat, **OPTIONS)
    seen: Any = {"input_ids": [[3, 4]], "pixel_values": torch.ones(1, 3, 4, 4)}
    with pytest.raises(TypeError, match="pixel_values: images and videos are not read"):
        dllm.generate(model, seen, **OPTIONS)
