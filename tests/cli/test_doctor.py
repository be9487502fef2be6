"""`dllm doctor`: it finds what is wrong with a checkpoint or a machine, and breaks on nothing."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import huggingface_hub
import pytest
import torch
from jinja2 import TemplateError
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dllm
from dllm import cache as caches
from dllm import doctor
from dllm.cli import doctor as cli
from dllm.cli.main import app
from dllm.decoding.memory_limits import readable
from dllm.decoding.speculation import verifiers
from dllm.doctor import checkpoint as doctor_checkpoint
from dllm.doctor import machine as doctor_machine
from dllm.doctor.checkpoint import LocalCheckpoint
from dllm.doctor.finding import Finding, failure, ok, run, warning
from dllm.models.config import CheckpointError
from dllm.models.families import FAMILIES
from dllm.models.loading.folder import EMBEDDED
from dllm.models.loading.weights import parse_device
from dllm.models.speed import Way
from dllm.models.speed.machine import Machine
from tests.support import GOLDEN
from tests.support.oracles import hosted

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint, to be broken."""
    copied = tmp_path / "checkpoint"
    shutil.copytree(EMBEDDED, copied)
    return copied


def found(name: Path | str, where: torch.device = CPU) -> dict[str, Finding]:
    return {finding.subject: finding for finding in doctor.examine_model(str(name), where)}


def failures(name: Path | str) -> dict[str, str]:
    return {f.subject: f.text for f in found(name).values() if f.level == "failure"}


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


# Checkpoints.


def test_the_embedded_checkpoint_is_well() -> None:
    seen = found("tiny")
    assert {finding.level for finding in seen.values()} == {"ok"}
    assert "LLaDAModelLM: 6 layers of 128, 1,309,312 parameters, full" in seen["architecture"].text
    assert "mask 0, end 1; at most 256" in seen["special tokens"].text
    assert seen["weights"].text.startswith("57 tensors in 1 file(s)")
    assert seen["size"].text.startswith("5.0 MiB in float32")
    assert "rows of 256 tokens fit" in seen["batch"].text


def test_what_lacks_a_tokenizer_is_warned_about() -> None:
    seen = found(GOLDEN / "models" / "dream_gqa")
    assert seen["tokenizer"].level == "warning"
    assert "chat template" not in seen
    assert "logits shifted by one" in seen["architecture"].text
    assert not failures(GOLDEN / "models" / "dream_gqa")


@pytest.mark.parametrize(
    ("break_it", "subject", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "architecture", "has no config.json"),
        (lambda f: cut(f / "config.json", 99), "architecture", "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "architecture", "holds a list"),
        (
            lambda f: set_config(f, architectures=["LLaDAModel"]),
            "architecture",
            "unknown architecture 'LLaDAModel': did you mean 'LLaDAModelLM'",
        ),
        (lambda f: set_config(f, n_heads="four"), "architecture", "n_heads='four'"),
        (lambda f: set_config(f, n_layers=7), "weights", "tensors are missing"),
        (lambda f: set_config(f, vocab_size=117, embedding_size=117), "weights", "other shapes"),
        (
            lambda f: set_config(f, vocab_size=90, embedding_size=90),
            "tokenizer",
            "id 115 is outside",
        ),
        (lambda f: set_config(f, mask_token_id=900), "special tokens", "mask_token_id=900"),
        (lambda f: set_config(f, torch_dtype="int3"), "size", "dtype='int3'"),
        (lambda f: (f / "model.safetensors").unlink(), "weights", "neither model.safetensors"),
        (lambda f: cut(f / "model.safetensors", 500_000), "weights", "truncated or corrupt"),
        (lambda f: cut(f / "model.safetensors", 3), "weights", "truncated or corrupt"),
        (lambda f: cut(f / "model.safetensors", 0), "weights", "truncated or corrupt"),
        (lambda f: cut(f / "tokenizer.json", 300), "tokenizer", "cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer", "no complete tokenizer"),
        (
            lambda f: (f / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
            "chat template",
            "no",
        ),
        (lambda f: cut(f / "generation_config.json", 9), "special tokens", "not valid JSON"),
        (
            lambda f: (f / "generation_config.json").write_text('{"temperature": -1}'),
            "defaults",
            "temperature=-1 must be 0 or more",
        ),
    ],
)
def test_what_is_broken_is_named(
    folder: Path, break_it: Callable[[Path], Any], subject: str, said: str
) -> None:
    break_it(folder)
    wrong = failures(folder)
    assert said in wrong[subject]
    with pytest.raises((ValueError, TypeError, TemplateError)):
        decode(folder)


def decode(folder: Path) -> None:
    messages: Any = [{"role": "user", "content": "ann has 3 cups."}]
    dllm.generate(dllm.load(folder), messages)


def test_a_number_of_layers_that_would_take_hours(folder: Path) -> None:
    set_config(folder, n_layers=10**9)
    said = "num_layers=1000000000 must be a whole number from 1 to 1000"
    assert said in failures(folder)["architecture"]
    with pytest.raises(dllm.models.CheckpointError, match=said):
        dllm.load(folder)


def test_one_cause_is_told_once(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert list(failures(folder)) == ["architecture"]


def split_in_two(folder: Path) -> None:
    """Writes the weights as two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number}-of-2.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: None, None),
        (lambda f: (f / "model-2-of-2.safetensors").unlink(), "lacks 1 of 2 weight files"),
        (lambda f: cut(f / "model-1-of-2.safetensors", 90_000), "truncated or corrupt"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"lost": "model-1-of-2.safetensors"}}'
            ),
            "names tensors that no file holds: lost",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 7}}'),
            "TypeError",
        ),
    ],
)
def test_shards(folder: Path, break_it: Callable[[Path], Any], said: str | None) -> None:
    split_in_two(folder)
    break_it(folder)
    if said is None:
        assert found(folder)["weights"].text.startswith("57 tensors in 2 file(s)")
    else:
        assert said in failures(folder)["weights"]


def test_a_header_that_promises_more_than_the_file_holds(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 2**60) + raw[8:])
    assert "truncated or corrupt" in failures(folder)["weights"]


@pytest.mark.parametrize("seed", range(12))
def test_it_survives_damage_of_any_kind(folder: Path, seed: int) -> None:
    """Bytes are flipped, cut off or replaced in some file, values in config.json swapped."""
    source = random.Random(seed)
    for path in source.sample(sorted(folder.iterdir()), 2):
        raw = bytearray(path.read_bytes())
        for _ in range(source.choice([1, 5, 200])):
            raw[source.randrange(len(raw))] = source.randrange(256)
        path.write_bytes(raw[: source.choice([len(raw), len(raw) // 2, 7, 0])])
    odd: list[Any] = [None, [], {}, "x", -1, 0, 1e300, True, [None], {"a": []}]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        wrong = {name: source.choice(odd) for name in source.sample(sorted(config), 3)}
        set_config(folder, **wrong, rope_scaling=source.choice(odd))
    except ValueError:
        pass  # the file is no JSON any more
    assert all(isinstance(f, Finding) for f in doctor.examine_model(str(folder), CPU))
    assert all("\x00" not in f.text for f in found(folder).values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "is not an existing folder, nor a hub id"),
        ("owner/never-downloaded", "was downloaded yet"),
        ("../owner/x/y", "is not an existing folder"),
        ("", "has no config.json"),
    ],
)
def test_a_model_that_is_nowhere(name: str, said: str) -> None:
    assert said in next(iter(failures(name).values()))


def test_a_file_is_no_checkpoint(folder: Path) -> None:
    assert "is a file" in failures(folder / "config.json")["checkpoint"]


def test_pickles_say_how_to_convert_them(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "as pickle (pytorch_model.bin)" in failures(folder)["weights"]


# Whether it fits.


@pytest.mark.parametrize(
    ("free", "level", "rows"),
    [(2**20, "failure", None), (5_500_000, "warning", "failure"), (50_000_000, "ok", "ok")],
)
def test_weights_against_memory(
    free: int, level: str, rows: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checkpoint, "available", lambda device: free)
    seen = found("tiny")
    assert seen["size"].level == level
    assert (seen["batch"].level if "batch" in seen else None) == rows


def test_unknown_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checkpoint, "available", lambda device: None)
    seen = found("tiny")
    assert "is not known" in seen["size"].text
    assert "batch" not in seen


@pytest.mark.parametrize(
    ("dtype", "device", "fast", "way_out"),
    [
        ("bfloat16", "cpu", False, ""),
        ("bfloat16", "cpu", True, ""),
        ("bfloat16", "cpu", None, ""),
        ("float16", "cpu", False, ""),
        ("float32", "cpu", True, ""),
        ("float32", "cuda", True, "give --dtype bfloat16"),
        ("bfloat16", "cuda", True, ""),
        ("bfloat16", "cuda", False, "give --dtype float32"),
    ],
)
def test_dtypes_against_devices(
    folder: Path,
    dtype: str,
    device: str,
    fast: bool | None,
    way_out: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_config(folder, torch_dtype=dtype)
    monkeypatch.setattr(doctor_checkpoint, "multiplies", lambda where, dtype: fast)
    (finding,) = doctor_checkpoint.dtype(LocalCheckpoint(str(folder)), torch.device(device))
    assert ("no bfloat16 arithmetic: speed='auto' widens" in finding.text) == (
        (dtype, device, fast) == ("bfloat16", "cpu", False)
    )
    assert (finding.level, finding.way_out) == ("warning" if way_out else "ok", way_out)


# What works with it: said before anything is loaded, and true.


def named(text: str) -> tuple[set[str], set[str]]:
    """Returns the names that a finding lists as fit, and those that are not."""
    fit, _, others = text.partition("; not ")
    return {*fit.split(", ")} - {""}, {*others.split(", ")} - {""}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of each family."""
    folder = tmp_path_factory.mktemp(request.param)
    with torch.inference_mode(False):
        hosted(request.param, folder)
    return folder


def works(model: dllm.HostedModel, **settings: Any) -> bool:
    """Whether a decoding is let through; `planned` goes with every cache."""
    given = {"scheduler": "fixed_quota:order=planned", "max_new_tokens": 8, **settings}
    try:
        dllm.stream(model, [[3, 4]], **given)
    except ValueError:
        return False
    return True


def test_caches_and_verifiers_are_those_that_decode(family: Path) -> None:
    seen, model = found(family), dllm.load(family)
    fit, others = named(seen["caches"].text)
    assert fit | others == {*caches.registry.names()}
    assert fit >= {"none"}
    assert fit == {name for name in fit | others if works(model, cache=name)}
    text = seen["verifiers"].text
    listed = dict(part.split(" with ") for part in text.split("; ") if " with " in part)
    for verifier in verifiers.registry.names():
        beside = {*listed[verifier].split(", ")} if verifier in listed else set()
        assert beside == {
            name
            for name in fit | others
            if works(model, cache=name, verifier=verifier, scheduler="threshold")
        }


def test_ways_to_speed_are_those_that_load(family: Path) -> None:
    seen = found(family)
    fit, others = named(seen["speed"].text)
    assert fit | others == {*get_args(Way)}
    for way in fit | others:
        if way in fit:
            dllm.load(family, speed=way)
            assert f"speed {way}" not in seen
        else:
            with pytest.raises(ValueError) as refused:  # noqa: PT011 whatever the finding says
                dllm.load(family, speed=way)
            assert seen[f"speed {way}"].text == f"refused: {refused.value}"


def test_what_loading_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("tiny")["speed='auto'"].text.startswith("takes plain (all: 1,3")
    monkeypatch.setattr("dllm.models.speed.choice.SMALL", 0)
    monkeypatch.setattr(
        doctor_checkpoint, "machine_of", lambda where: Machine("cpu", (torch.float32,))
    )
    said = [f.text for f in doctor.examine_model("tiny", CPU) if f.subject == "speed='auto'"]
    assert said[0].startswith("takes fused+widened (fused: ")
    left = {"int8", "int4", "fp8", "kv_int8", "compiled", "captured", "packed"}
    assert {text.split()[1] for text in said[1:]} == left


def test_memory_of_narrower_weights() -> None:
    seen = found("tiny")["memory of weights"].text
    matrices, rows = 6 * (4 * 128 * 128 + 3 * 128 * 384), 6 * (4 * 128 + 2 * 384 + 128)
    config = json.loads((EMBEDDED / "config.json").read_text())
    assert (config["d_model"], config["mlp_hidden_size"], config["n_layers"]) == (128, 384, 6)
    rest = 1_309_312 - matrices
    groups = matrices // 64  # each with a scale of two bytes and a zero of one
    eight, four = matrices + 2 * rows + 2 * rest, matrices // 2 + 3 * groups + 2 * rest
    sizes = {"bfloat16": 2 * 1_309_312, "int8": eight, "fp8": eight, "int4": four}
    for name, size in sizes.items():
        assert f"{readable(size)} in {name}" in seen


def test_an_adapter_is_looked_at_without_its_model(folder: Path, tmp_path: Path) -> None:
    name, lora = "base_model.model.model.transformer.blocks.0.q_proj.lora_", tmp_path / "lora"
    lora.mkdir()
    pair = {f"{name}A.weight": torch.zeros(2, 128), f"{name}B.weight": torch.zeros(128, 2)}
    save_file(pair, lora / "adapter_model.safetensors")
    config = lora / "adapter_config.json"
    for rank, level in ((2, "ok"), (3, "failure")):
        config.write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 1}))
        examined = doctor.examine_model(str(folder), CPU, adapter=str(lora))
        (seen,) = (one for one in examined if one.subject == "adapter")
        assert seen.level == level
        assert ("changes 1 weights" in seen.text) == (level == "ok")
    done = CliRunner().invoke(app, ["doctor", "--adapter", str(lora)])
    assert "name the model that it is of" in str(done.exception)


# The machine.


@pytest.fixture(scope="module")
def machine() -> list[Finding]:
    return list(doctor.examine_machine(CPU))


@pytest.mark.slow
def test_this_machine_is_examined(machine: list[Finding]) -> None:
    subjects = [finding.subject for finding in machine]
    wanted = "python torch transformers accelerate device processor threads memory attention triton"
    assert set(wanted.split()) | {"torch.compile", "sandbox"} <= set(subjects)
    assert not [finding for finding in machine if finding.level == "failure"]
    (attention,) = (finding for finding in machine if finding.subject == "attention")
    assert attention.text.endswith("math")


@pytest.mark.parametrize(
    ("count", "cores", "policy", "level", "way_out"),
    [
        (8, 2.0, "passive", "warning", "export OMP_NUM_THREADS=2"),
        (4, 1.5, "passive", "warning", "export OMP_NUM_THREADS=1"),
        (2, 2.0, None, "warning", "export OMP_WAIT_POLICY=passive"),
        (2, 2.0, "active", "warning", "export OMP_WAIT_POLICY=passive"),
        (2, 2.0, "PASSIVE", "ok", ""),
        (1, 2.0, None, "ok", ""),
    ],
)
def test_threads(
    count: int,
    cores: float,
    policy: str | None,
    level: str,
    way_out: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(doctor_machine, "usable_cores", lambda: cores)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    (finding,) = doctor_machine.threads(CPU)
    assert (finding.level, finding.way_out) == (level, way_out)
    (on_gpu,) = doctor_machine.threads(torch.device("cuda"))
    assert on_gpu.level == "ok"


@pytest.mark.parametrize(("quota", "most"), [("150000 100000\n", 1.5), ("max 100000\n", None)])
def test_a_containers_share_of_the_cores_counts(
    quota: str, most: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_machine, "QUOTA", tmp_path / "none")
    cores = doctor_machine.usable_cores()
    monkeypatch.setattr(doctor_machine, "QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert doctor_machine.usable_cores() == min(cores, most or cores)


def test_packages_against_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=2.6", "transformers>=99", "no-such-package>=1", "rich>=13"]
    monkeypatch.setattr(
        doctor_machine, "_requirements", lambda extra: [Requirement(text) for text in needed]
    )
    seen = {finding.subject: finding for finding in doctor_machine.packages()}
    assert seen["torch"].level == "ok"
    assert "rich" not in seen
    assert seen["transformers"].level == "failure"
    assert "needed: transformers>=99" in seen["transformers"].text
    assert seen["no-such-package"].way_out == "pip install 'no-such-package>=1'"


def test_extras_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["torch>=2.6", 'no-such-package>=1; extra == "eval"', 'rich; extra == "other"']
    monkeypatch.setattr(metadata, "requires", lambda name: listed)
    about = SimpleNamespace(get_all=lambda key: ["eval", "other", "dev"])
    monkeypatch.setattr(metadata, "metadata", lambda name: about)
    seen = {finding.subject: finding for finding in doctor_machine.extras()}
    assert list(seen) == ["extra eval", "extra other"]
    assert seen["extra other"].text == "there"
    lacking = "without no-such-package>=1: pip install 'dllm[eval]'"
    assert (seen["extra eval"].level, seen["extra eval"].text) == ("ok", lacking)


def test_attention_kernels_are_run_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, attn_mask: Any = None) -> None:
        if attn_mask is not None:
            raise RuntimeError("No available kernel")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    (finding,) = doctor_machine.attention(CPU)
    assert finding.level == "failure"
    assert finding.text.startswith("flash, efficient, cudnn, math; ")
    assert finding.text.endswith("lengths: none")


def test_a_compiler_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("no compiler found\nlong text")

    monkeypatch.setattr(torch, "compile", broken)
    (finding,) = doctor_machine.compiler(CPU)
    assert finding.level == "warning"
    assert "(RuntimeError: no compiler found)" in finding.text


@pytest.mark.parametrize("given", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(given: str) -> None:
    with pytest.raises(ValueError, match=f"device='{given}'"):
        parse_device(given)


def test_a_check_that_breaks_down_is_a_finding() -> None:
    class Panic(BaseException):
        """What a Rust library raises."""

    def panics() -> Any:
        yield ok("first", "fine")
        raise Panic("index out of bounds")

    def stops() -> Any:
        raise KeyboardInterrupt

    seen = list(run([("a", panics), ("b", panics), ("c", lambda: [warning("c", "hm")])]))
    assert [f.subject for f in seen] == ["first", "a", "first", "c"]
    assert seen[1] == failure("a", "Panic: index out of bounds")
    with pytest.raises(KeyboardInterrupt):
        list(run([("a", stops)]))


# The command.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, machine: list[Finding]) -> None:
    """The machine was examined once; the compiler alone takes seconds."""
    monkeypatch.setattr(doctor, "examine_machine", lambda where: iter(machine))


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_line_each(folder: Path, machine: list[Finding]) -> None:
    done = CliRunner().invoke(app, ["doctor", "tiny"])
    assert done.exit_code == 0, done.output
    assert "ok      architecture: LLaDAModelLM" in done.output
    assert done.output.splitlines()[-1].startswith("0 failure(s)")
    cut(folder / "model.safetensors", 1000)
    broken = CliRunner().invoke(app, ["doctor", str(folder)])
    assert broken.exit_code == cli.FAILED
    assert "failure weights: " in broken.output
    assert broken.output.splitlines()[-1].startswith("1 failure(s)")


def test_json_is_for_machines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine_machine", lambda where: iter(()))  # takes seconds
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    done = CliRunner().invoke(app, ["doctor", str(folder), "--json"])
    record = json.loads(done.stdout)
    assert (done.exit_code, record["ok"]) == (0, True)
    levels = {finding["subject"]: finding["level"] for finding in record["findings"]}
    assert levels["tokenizer"] == "warning"
    assert all(set(f) == {"subject", "level", "text", "way_out"} for f in record["findings"])
    broken = CliRunner().invoke(app, ["doctor", str(folder / "none"), "--json"])
    assert (broken.exit_code, json.loads(broken.stdout)["ok"]) == (cli.FAILED, False)


def test_a_wrong_device_is_an_error() -> None:
    done = CliRunner().invoke(app, ["doctor", "--device", "gpu"])
    assert isinstance(done.exception, ValueError)


def test_no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("dllm.models.loading.checkpoint.stream_tensors", refuse)
    monkeypatch.setattr("dllm.models.loading.weights.stream_tensors", refuse)
    assert not failures("tiny")


def test_the_checkpoint_that_a_shape_is_taken_from_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = GOLDEN / "models" / "e2d2_tied"
    config = json.loads((source / "config.json").read_text())
    del config["qwen3_config"]
    config["backbone_config"]["pretrained_model_name_or_path"] = "someone/base"
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked: list[bool] = []

    def snapshot(name: str, local_files_only: bool, **options: Any) -> str:
        asked.append(local_files_only)
        raise OSError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    checkpoint = LocalCheckpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="takes its shape from 'someone/base'"):
        _ = checkpoint.network
    assert asked == [True]
