"""SGLang without its engine: what an algorithm is given there, and its own code where it is."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import dllm
from dllm.state.plan import StepPlan
from tests.support import ROOT

WHEELS = ROOT / "build" / "sglang"
READ = ("sglang/srt/dllm/algorithm/", "sglang/srt/dllm/config.py", "sglang/srt/plugins/")
# What those modules import of the engine, which needs a GPU, and of it the names.
STUBS: dict[str, dict[str, Any]] = {
    "arg_groups.overrides": {"resolving_view": lambda server_args: server_args},
    "configs.model_config": {"ModelConfig": SimpleNamespace(from_server_args=None)},
    "environ": {
        "envs": SimpleNamespace(
            SGLANG_PLUGINS=SimpleNamespace(get=lambda: None),
            SGLANG_PLATFORM=SimpleNamespace(get=lambda: None),
        )
    },
    "layers.logits_processor": {"LogitsProcessorOutput": object},
    "model_executor.forward_batch_info": {"ForwardBatch": object},
    "model_executor.model_runner": {"ModelRunner": object},
    "server_args": {"ServerArgs": object},
    "utils": {"is_npu": lambda: False},
}


def config_of(mask_id: int, block_size: int, options: dict[str, Any], fdfo: bool = False) -> Any:
    """Returns what the engine reads from its command line for an algorithm."""
    return SimpleNamespace(
        block_size=block_size,
        mask_id=mask_id,
        algorithm_config=options,
        first_done_first_out_mode=fdfo,
    )


class Batch:
    """The blocks of a forward, as the engine hands them to an algorithm."""

    def __init__(self, input_ids: Tensor, batch_size: int, prompt_mask: Any = None) -> None:
        self.input_ids = input_ids  # (rows * block,) int64
        self.batch_size = batch_size
        self.dllm_prompt_mask = None if prompt_mask is None else torch.tensor(prompt_mask).bool()


class Interface:
    """The base class of an algorithm as far as ours need it."""

    def __init__(self, config: Any) -> None:
        self.block_size, self.mask_id = config.block_size, config.mask_id


def wheel() -> Path | None:
    """Returns the wheel of SGLang that `make sglang` brought, None where there is none."""
    return next(iter(sorted(WHEELS.glob("sglang-*.whl"))), None)


@contextmanager
def installed(archive: Path, folder: Path) -> Iterator[Path]:
    """Makes the engine's algorithms, their registry and its plug-in loader importable."""
    with zipfile.ZipFile(archive) as held:
        held.extractall(folder, [name for name in held.namelist() if name.startswith(READ)])
    for name in ("sglang", "sglang.srt"):
        _add(name, folder / name.replace(".", "/"))
    for name, content in STUBS.items():
        parent, _, last = f"sglang.srt.{name}".rpartition(".")
        if parent not in sys.modules:
            _add(parent, folder / "none")
        vars(_add(f"{parent}.{last}", folder / "none")).update(content)
    try:
        yield folder
    finally:
        for name in [one for one in sys.modules if one.partition(".")[0] == "sglang"]:
            del sys.modules[name]


def _add(name: str, path: Path) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = [str(path)]
    return module


@dataclass
class Request:
    """A row of the engine: its tokens so far, and its block while that is open."""

    tokens: list[int]  # of whole blocks before the one that is open
    block: list[int]
    num_blocks: int  # left, with this one
    state: Any = None
    seen: list[list[int]] = field(default_factory=list)  # the row after each forward that wrote


@dataclass
class Runner:
    """A model as the engine runs it: logits of the block of each request in `batch`."""

    model: dllm.HostedModel
    block: int
    batch: list[Request] = field(default_factory=list)
    forwards: int = 0

    def forward(self, forward_batch: Any, pp_proxy_tensors: Any = None) -> Any:
        """Returns the logits (rows * block, V) where the engine has them."""
        self.forwards += 1
        blocks, found = forward_batch.input_ids.view(-1, self.block), []
        for request, block in zip(self.batch, blocks, strict=True):
            row = [*request.tokens, *block.tolist()]
            if not request.seen or request.seen[-1] != row:
                request.seen.append(row)
            found.append(_logits(self.model, torch.tensor(row), self.block)[-self.block :])
        output = SimpleNamespace(full_logits=torch.cat(found))
        return SimpleNamespace(logits_output=output, can_run_graph=False)


@torch.inference_mode()
def _logits(model: dllm.HostedModel, tokens: Tensor, block: int) -> Tensor:
    """Returns the logits (L, V) of tokens (L,) of which each sees its block and those before."""
    columns = torch.arange(len(tokens))
    seen = columns // block <= columns[:, None] // block
    plan = StepPlan("step", columns[None], columns[None], len(tokens), seen[None])
    return model.forward(tokens[None], plan, None)[0]


def request_of(prompt: list[int], block: int, num_blocks: int, mask: int) -> Request:
    """Returns a request that is answered to the end of its block number `num_blocks`."""
    whole = len(prompt) // block * block
    rest = prompt[whole:]
    return Request(prompt[:whole], rest + [mask] * (block - len(rest)), num_blocks)


def decode(algorithm: Any, runner: Runner, requests: list[Request], mask: int) -> None:
    """Answers requests as the engine's scheduler does, with its own loop inside a block."""
    running = list(requests)
    while running:
        runner.batch = running
        ids = torch.tensor([token for one in running for token in one.block])
        batch = Batch(ids, len(running))
        states = [one.state for one in running]
        _, _, accepted, states_out, _ = algorithm.run(runner, batch, states)
        blocks = batch.input_ids.view(-1, runner.block).tolist()
        for number, one in enumerate(running):
            one.block = blocks[number]
            row = [*one.tokens, *one.block]
            if one.seen[-1] != row:
                one.seen.append(row)
            if accepted is not None and not accepted[number]:
                one.state = states_out[number]
                continue
            one.tokens, one.block, one.state = row, [mask] * runner.block, None
            one.num_blocks -= 1
        running = [one for one in running if one.num_blocks]
