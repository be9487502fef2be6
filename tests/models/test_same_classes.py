"""Checkpoints that others trained on, in the layout of a hosted class or of a causal one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.models import CheckpointError, load
from tests.support import GOLDEN
from tests.support.oracles import hosted

OPTIONS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}


def released(name: str, folder: Path, **changed: object) -> Path:
    """Returns a golden checkpoint with a config.json as such releases have it."""
    shutil.copytree(GOLDEN / "models" / name, folder)
    config = json.loads((folder / "config.json").read_text())
    remote = {"auto_map": {"AutoModel": "modeling.Own"}, "transformers_version": "4.52.2"}
    (folder / "config.json").write_text(json.dumps({**config, **remote, **changed}))
    return folder


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("llada_mha", "threshold:0.5"),  # dParallel-LLaDA, dLLM-Var where it names LLaDA's class
        ("dream_gqa", "threshold:0.5"),  # dParallel-Dream
        ("llada_mha", "multi_block@d3llm"),
        ("dream_gqa", "multi_block@d3llm"),
    ],
)
def test_d3llm_and_dparallel_are_llada_and_dream(name: str, scheduler: str, tmp_path: Path) -> None:
    model = load(released(name, tmp_path / "released"))
    plain = load(GOLDEN / "models" / name)
    assert model.spec == plain.spec
    prompts = [[3, 4, 5], [6] * 9]
    outs = [
        dllm.generate(one, prompts, scheduler=scheduler, **OPTIONS).sequences
        for one in (model, plain)
    ]
    assert outs[0] == outs[1]


@pytest.mark.parametrize(
    ("architecture", "way_out"),
    [
        ("Qwen3ForCausalLM", "A2DQwen3LMHeadModel"),  # ReFusion
        ("Qwen2ForCausalLM", "A2DQwen2LMHeadModel"),  # Open-dCoder
        ("LlamaForCausalLM", "A2DLlamaLMHeadModel"),
    ],
)
def test_causal_classes_are_refused_with_a_way_out(
    architecture: str, way_out: str, tmp_path: Path
) -> None:
    expected = hosted(way_out, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    with pytest.raises(
        CheckpointError, match="ReFusion has it: it keeps keys in the order"
    ) as said:
        load(tmp_path)
    assert f'architectures to ["{way_out}"]' in str(said.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [way_out]}))
    assert load(tmp_path).spec == expected.spec
