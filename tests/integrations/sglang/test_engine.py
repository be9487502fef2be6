"""Our schedulers under SGLang's own code: its loop, its registry, its loader of plug-ins."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dllm
from dllm.integrations.sglang import NotHostedError, algorithm_name, reasons
from tests.support import ROOT
from tests.support.models import golden_model, random_prompts
from tests.support.sglang import Runner, decode, request_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BLOCK, MASK, NUM_BLOCKS = 8, 126, 3
HOSTED = [name for name, reason in reasons().items() if reason is None]
REFUSED = [name for name in reasons() if name not in HOSTED]
# Whose `steps` are those of a row elsewhere, and of one block there.
STEPPED = ("dream", "fixed_quota", "predict_and_noise", "quota_threshold")
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in HOSTED),
    *((name, {"steps": 4}) for name in STEPPED),
]


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    loaded = golden_model("llada2_moe", "float32")
    return replace(loaded, spec=replace(loaded.spec, block_length=BLOCK))


def algorithm_of(sglang: Any, name: str, options: dict[str, Any], fdfo: bool = False) -> Any:
    """Returns an algorithm as the engine makes it, of its own configuration."""
    config = import_module("sglang.srt.dllm.config")
    made = config.DllmConfig(
        algorithm=name,
        algorithm_config={"block_size": BLOCK, **options},
        block_size=BLOCK,
        mask_id=MASK,
        max_running_requests=4,
        first_done_first_out_mode=fdfo,
    )
    return sglang.get_algorithm(made)


def answered(algorithm: Any, model: dllm.HostedModel) -> tuple[list[list[list[int]]], int]:
    """Returns each row after every forward that wrote, and the number of forwards."""
    runner = Runner(model, BLOCK)
    requests = [request_of(prompt, BLOCK, NUM_BLOCKS, MASK) for prompt in random_prompts(3)]
    decode(algorithm, runner, requests, MASK)
    return [one.seen for one in requests], runner.forwards


def own(model: dllm.HostedModel, scheduler: dict[str, Any]) -> list[list[list[int]]]:
    """Returns the same of our own loop, each prompt alone."""
    found = []
    for prompt in random_prompts(3):
        whole = (len(prompt) // BLOCK + NUM_BLOCKS) * BLOCK
        running = dllm.stream(
            model,
            [prompt],
            max_new_tokens=whole - len(prompt),
            block_length=BLOCK,
            scheduler=scheduler,
            cache="block_causal",
            blocks_from="zero",
            at_eos="ignore",
        )
        found.append([running.canvas.tokens[0, :whole].tolist() for _ in running])
    return found


def changes(rows: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Returns what each forward wrote, columns and tokens, those that wrote nothing left out."""
    length = len(rows[-1])
    whole = [row + [MASK] * (length - len(row)) for row in rows]
    steps = [
        [(n, new) for n, (old, new) in enumerate(zip(*pair, strict=True)) if old != new]
        for pair in pairwise(whole)
    ]
    return [step for step in steps if step]


@pytest.mark.few(4)
@pytest.mark.parametrize("fdfo", [False, True], ids=["together", "first_out"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_hosted_scheduler_writes_what_our_own_loop_writes(
    sglang: Any, model: dllm.HostedModel, name: str, options: dict[str, Any], fdfo: bool
) -> None:
    algorithm = algorithm_of(sglang, algorithm_name(name), options, fdfo)
    found, _ = answered(algorithm, model)
    whole = {key: value * NUM_BLOCKS for key, value in options.items()}
    for prompt, engine, ours in zip(
        random_prompts(3), found, own(model, {"name": name, **whole}), strict=True
    ):
        masks = len(ours[-1]) - len(prompt)
        assert engine[-1] == ours[-1]
        assert changes(engine) == changes([prompt + [MASK] * masks, *ours])


@pytest.mark.parametrize("fdfo", [False, True], ids=["together", "first_out"])
@pytest.mark.parametrize(
    ("theirs", "given", "options"),
    [
        ("LowConfidence", {"threshold": 0.6}, {"threshold": 0.6, "editing_threshold": None}),
        (
            "JointThreshold",
            {"threshold": 0.6, "edit_threshold": 0.5, "max_post_edit_steps": 3},
            {"threshold": 0.6, "editing_threshold": 0.5, "post_steps": 3},
        ),
    ],
    ids=["LowConfidence", "JointThreshold"],
)
def test_the_engines_own_rules_take_as_many_forwards(
    sglang: Any,
    model: dllm.HostedModel,
    theirs: str,
    given: dict[str, Any],
    options: dict[str, Any],
    fdfo: bool,
) -> None:
    expected = answered(algorithm_of(sglang, theirs, given, fdfo), model)
    assert answered(algorithm_of(sglang, "DllmTokenEditing", options, fdfo), model) == expected


def test_the_engine_finds_us_by_our_entry_point(
    sglang: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = "sglang.srt.plugins"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [f"{name} = {where}" for name, where in project["entry-points"][group].items()]
    info = tmp_path / "ours-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1\n")
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [one for one in sglang.algo_name_to_cls if one.startswith("Dllm")]:
        del sglang.algo_name_to_cls[name]
    import_module("sglang.srt.plugins").load_plugins()
    assert {algorithm_name(name) for name in HOSTED} < set(sglang.algo_name_to_cls)
    assert {"LowConfidence", "JointThreshold"} < set(sglang.algo_name_to_cls), "its own stay"
    base = sys.modules["sglang.srt.dllm.algorithm.base"].DllmAlgorithm
    assert issubclass(sglang.get_algorithm_cls("DllmThreshold"), base)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_hosted_says_why_when_it_is_chosen(sglang: Any, name: str) -> None:
    cls = sglang.get_algorithm_cls(algorithm_name(name))
    reason = reasons([name])[name]
    if isinstance(reason, NotHostedError):  # whatever its options: at the start of the launch
        with pytest.raises(NotHostedError, match=re.escape(str(reason))):
            cls.configure_server_args(SimpleNamespace())
    with pytest.raises(NotHostedError, match=re.escape(str(reason))) as told:
        algorithm_of(sglang, algorithm_name(name), {})
    assert "dllm.generate" in str(told.value)


def test_options_come_from_the_engines_yaml_file(
    sglang: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rule.yaml"
    described = SimpleNamespace(hf_config=SimpleNamespace(architectures=["SDARForCausalLM"]))
    monkeypatch.setattr(
        sys.modules["sglang.srt.dllm.config"].ModelConfig,
        "from_server_args",
        lambda *_, **__: described,
    )
    args = SimpleNamespace(
        dllm_algorithm="DllmThreshold",
        dllm_algorithm_config=str(file),
        dllm_fdfo=True,
        max_running_requests=2,
        model_path="sdar",
        revision=None,
    )
    base = sys.modules["sglang.srt.dllm.algorithm.base"].DllmAlgorithm
    file.write_text("threshold: 0.8\nblock_size: 16\n")
    made = base.from_server_args(args)
    assert made.hosted.scheduler == dllm.schedulers.registry.create("threshold:0.8")
    assert made.hosted.block_length == 16
    assert made.fdfo
    file.write_text("treshold: 0.8\n")
    with pytest.raises(ValueError, match="no option 'treshold': did you mean 'threshold'"):
        base.from_server_args(args)
