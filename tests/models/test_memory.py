"""Memory while a checkpoint is loaded: the model, and beside it no more than a part of a file.

Measured in a process of its own. VmHWM is the most that was resident at a time: what was allocated
(RssAnon) and also the pages of mapped files (RssFile), libraries and weights, which the system
could take back. It is what a limit by resident size would have seen.
"""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dllm
from dllm.models.cost import narrow_bytes
from dllm.models.families import find_family
from dllm.models.loading import files
from dllm.models.loading.empty import empty_network
from dllm.models.loading.weights import Weights
from tests.support import GOLDEN, ROOT

SDAR: dict[str, Any] = {
    "architectures": ["SDARForCausalLM"],
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "block_size": 4,
    "mask_token_id": 151669,
    "eos_token_id": 151643,
    "torch_dtype": "bfloat16",
}
NAMES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "tie_word_embeddings",
)
NUM_DRAWN = 1_000_003  # a prime number: no two rows of a matrix are the same
SIZES = {
    "0.6B": (1024, 3072, 28, 16, True),
    "1.7B": (2048, 6144, 28, 16, True),
    "8B": (4096, 12288, 36, 32, False),
}

MEASURE = """
import json, sys, threading, time
def resident(*names):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return {name: int(lines[name].split()[0]) * 1024 for name in names}
import torch, dllm
if any(way in sys.argv[2] for way in ("int8", "int4", "fp8")):
    import torchao.quantization
torch.zeros(8, 8) @ torch.zeros(8, 8)
before, peaks = resident("VmHWM"), {"RssAnon": 0, "RssFile": 0}
done = threading.Event()
def watch():
    while not done.wait(0.02):
        for name, size in resident(*peaks).items():
            peaks[name] = max(peaks[name], size)
watcher = threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
model = dllm.load(sys.argv[1], **json.loads(sys.argv[2]))
seconds = time.perf_counter() - began
after = resident("VmHWM", "RssAnon", "RssFile")
done.set()
watcher.join()
num_tokens = int(sys.argv[3])
tokens = []
if num_tokens:
    out = dllm.generate(model, [[3, 4, 5]], max_new_tokens=num_tokens, at_eos="ignore", seed=0)
    tokens = out.sequences[0][3:]
print(json.dumps({"before": before["VmHWM"], "peak": after["VmHWM"], "peaks": peaks,
                  "after": after, "seconds": seconds, "tokens": list(tokens)}))
"""


@dataclass(frozen=True)
class Written:
    """A checkpoint of random weights, and the bytes of its files."""

    folder: Path
    sizes: tuple[int, ...]


def write(folder: Path, size: str, num_shards: int) -> Written:
    """Writes a checkpoint as it is released: config.json, shards in order, an index."""
    config = {**SDAR, **dict(zip(NAMES, SIZES[size], strict=True))}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    family = find_family(config)
    shapes = {
        piece.name: weight[piece.where].shape
        for name, weight in empty_network(family.read_network(config)).named_parameters()
        for piece in family.names.pieces(name, weight.shape)
    }
    most = sum(shape.numel() for shape in shapes.values()) / num_shards
    drawn = torch.randn(NUM_DRAWN, generator=torch.Generator().manual_seed(0))
    weight_map, sizes = {}, []
    for number, names in enumerate(shards(shapes, most), start=1):
        file = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        spread = {name: shapes[name][-1] ** -0.5 for name in names}
        tensors = {name: repeated(drawn * spread[name], shapes[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
        sizes.append((folder / file).stat().st_size)
    assert len(sizes) == num_shards
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return Written(folder, tuple(sizes))


def repeated(drawn: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns a tensor of the same numbers over and over: to draw all of them takes long."""
    times = -(-shape.numel() // len(drawn))
    return drawn.bfloat16().repeat(times)[: shape.numel()].view(shape)


def shards(shapes: dict[str, torch.Size], most: float) -> Iterator[list[str]]:
    """Yields the names of each shard; the last one takes what is left over."""
    names: list[str] = []
    count = 0.0
    for name, shape in shapes.items():
        if count >= most:
            yield names
            names, count = [], count - most
        names.append(name)
        count += shape.numel()
    yield names


def measure(folder: Path, num_tokens: int, **how: Any) -> dict[str, Any]:
    """Returns what loading a folder and decoding some tokens took, in bytes and seconds."""
    command = [sys.executable, "-c", MEASURE, str(folder), json.dumps(how), str(num_tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is resident")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("size", "num_shards"),
    [pytest.param("0.6B", 4, marks=pytest.mark.whole), ("0.6B", 1), ("1.7B", 3)],
    ids=str,
)
def test_peak_while_loading(size: str, num_shards: int, tmp_path: Path) -> None:
    written = write(tmp_path, size, num_shards)
    found = measure(written.folder, 8, speed=None)  # "packed" keeps a second copy
    model = sum(written.sizes)
    shard = max(written.sizes)
    assert model > {"0.6B": 1.1e9, "1.7B": 3.3e9}[size]
    assert found["peak"] > found["before"] + model  # or it was not measured
    assert found["peak"] < found["before"] + model + 1.5 * shard
    # However large the files are: the embedding is the largest tensor.
    largest = max(2 * SDAR["vocab_size"] * SIZES[size][0], files.MAPPED)
    assert found["peak"] < found["before"] + model + largest + files.MAPPED
    assert len(found["tokens"]) == 8
    assert all(0 <= token < SDAR["vocab_size"] for token in found["tokens"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is resident")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("way", "bits", "group_size"), [("int8", 8, None), ("fp8", 8, None), ("int4:32", 4, 32)]
)
def test_peak_while_rounding(way: str, bits: int, group_size: int | None, tmp_path: Path) -> None:
    """The weights in full are never there, and what was freed is given back."""
    pytest.importorskip("torchao")
    written = write(tmp_path, "1.7B", 3)
    found = measure(written.folder, 0, speed=way)
    config = find_family(SDAR).read_network(
        {**SDAR, **dict(zip(NAMES, SIZES["1.7B"], strict=True))}
    )
    final = narrow_bytes(empty_network(config), bits, group_size)
    assert final < (0.5 if bits == 4 else 0.75) * sum(written.sizes)
    assert found["peak"] - found["before"] > final  # or it was not measured
    assert found["peak"] - found["before"] < 1.3 * final
    assert found["after"]["RssAnon"] < found["before"] + 1.05 * final


def test_a_layer_is_rounded_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    in_full: list[int] = []
    real = Weights.fill

    def watched(self: Weights, network: Any, *rest: Any) -> None:
        def count(layer: Any) -> None:
            matrices = [getattr(b.attention.q, "weight", None) for b in network.blocks]
            full = [weight is not None and not weight.is_meta for weight in matrices]
            in_full.append(sum(full))
            assert self.settle is not None
            self.settle(layer)

        real(replace(self, settle=count), network, *rest)

    monkeypatch.setattr(Weights, "fill", watched)
    model = dllm.load(GOLDEN / "models" / "llada_gqa", speed="int8")
    assert in_full == [1] * len(model.network.blocks)


def test_files_are_mapped_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = GOLDEN / "models" / "dream_gqa"
    whole = dllm.load(folder).network.state_dict()
    opened: list[Path] = []
    real: Any = getattr(files, "safe_open")  # noqa: B009 which the module only imports

    def counting(file: Path, framework: str) -> Any:
        opened.append(file)
        return real(file, framework=framework)

    monkeypatch.setattr(files, "safe_open", counting)
    stored = files.list_tensors(folder)
    opened.clear()
    for most, expected in ((2**40, 1), (1, len(stored)), (2**16, None)):
        monkeypatch.setattr(files, "MAPPED", most)
        sizes = {name: tensor.nbytes for name, tensor in files.stream_tensors(stored, stored)}
        assert sizes == {name: part.num_bytes for name, part in stored.items()}
        count = len(opened)
        assert count == expected or (expected is None and 1 < count < len(stored))
        opened.clear()
    loaded = dllm.load(folder).network.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in whole.items())


def test_progress_counts_the_bytes_that_are_read() -> None:
    told: list[tuple[int, int]] = []
    folder = GOLDEN / "models" / "llada_gqa"
    model = dllm.load(folder, progress=lambda *pair: told.append(pair))
    total = sum(weight.nbytes for weight in model.network.parameters())
    assert {pair[1] for pair in told} == {total}
    read = [pair[0] for pair in told]
    assert read == sorted(read)
    assert (read[0], read[-1]) == (0, total)
    assert len(read) == len(list(model.network.parameters())) + 1


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    written = tmp_path / "model"
    dllm.save(dllm.load(GOLDEN / "models" / "llada_gqa"), written, max_shard_size="100KB")
    paths = [written, *sorted(written.iterdir())]
    for path in paths:
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    before = [(path, path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in paths]
    try:
        model = dllm.load(written)
        dllm.generate(model, [[3, 4]], max_new_tokens=8)
        after = [(path, path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in paths]
        assert after == before
        assert sorted(written.iterdir()) == paths[1:]
    finally:
        written.chmod(stat.S_IRWXU)
