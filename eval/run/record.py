"""The record of a run: settings, weights, versions and hardware, once beside its results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

import dllm
from dllm.eval.run import digest_of
from dllm.models.digest import digest, weights_digest
from dllm.models.model import DenoisingModel
from dllm.options import Count, Options
from dllm.reading import parse_json


@dataclass(frozen=True)
class Environment(Options):
    """The weights, versions and hardware that a figure depends on beside the settings."""

    weights: str | None  # digest of evenly spaced elements of each tensor; None: not a module
    revision: str | None  # commit of the hub's repository
    chat_template: str | None  # digest of the template
    attention: str | None  # what computes it
    device: str
    threads: Count  # of torch on the CPU
    python: str
    torch: str
    transformers: str
    dllm: str
    commit: str | None  # of the checkout that dllm is in; "+" marks changed files


@dataclass(frozen=True)
class Start(Options):
    """A command that decoded problems of a run; one that was killed is followed by another."""

    id: str  # what the lines of this start have as `start`
    began: str  # UTC, ISO 8601
    batch_size: Count  # rows decoded at a time, by each process
    prompts: str  # digest of all problems and prompts
    processes: tuple[Environment, ...]  # one for each process
    # Whether waiting problems took the places of finished ones; None: before it was noted.
    continuous: bool | None = None

    @property
    def weights(self) -> str | None:
        return self.processes[0].weights


@dataclass(frozen=True)
class RunRecord:
    """A run: what decides its answers, and every start that made some."""

    settings: Mapping[str, Any]
    task: Mapping[str, Any] = field(default_factory=dict)  # what the task says of itself
    starts: tuple[Start, ...] = ()


def beside(output: Path) -> Path:
    """Returns where the records of a results file are: `rows.jsonl` has `rows.runs.json`."""
    return output.with_name(f"{output.stem}.runs.json")


def read_records(output: Path) -> dict[str, RunRecord]:
    """Returns the records of the runs in a results file by their names; none if there are none.

    Raises ValueError for a file that is something else.
    """
    path = beside(output)
    if not path.exists():
        return {}
    try:
        runs = parse_json(path.read_text(encoding="utf-8"), path.name, allow_nan=True)["runs"]
        return {
            name: RunRecord(run["settings"], run["task"], tuple(map(_start, run["starts"])))
            for name, run in runs.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a record of runs ({error!r}): move it away, and starts from now on "
            "are recorded anew; the results are not in it"
        ) from None


def note(output: Path, name: str, record: RunRecord) -> None:
    """Adds a run's record, or replaces it; a kill leaves the file before or after, not between."""
    records = read_records(output) | {name: record}
    write_json(beside(output), {"runs": {run: asdict(one) for run, one in records.items()}})


def write_json(path: Path, value: Any) -> None:
    """Writes a file that a kill leaves as it was or as it is, never in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def begun(output: Path, name: str, fresh: RunRecord) -> RunRecord:
    """Returns the record of a run in a file with a new start, the only one of `fresh`, added."""
    old = read_records(output).get(name, RunRecord({})).starts
    return replace(fresh, starts=(*old, *fresh.starts))


def now() -> str:
    """Returns the time as it is recorded."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _start(start: Mapping[str, Any]) -> Start:
    return Start(**{**start, "processes": tuple(Environment(**one) for one in start["processes"])})


def environment_of(model: DenoisingModel) -> Environment:
    """Returns what there is now."""
    template = getattr(model.tokenizer, "chat_template", None)
    device = f"{model.device.type} ({platform.machine()}, {os.cpu_count()} cores)"
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    return Environment(
        weights=weights_digest(model),
        revision=getattr(model, "revision", None),
        chat_template=None if template is None else digest([str(template).encode()]),
        attention=_attention(model),
        device=device,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=str(torch.__version__),  # a class of its own, which YAML has no form for
        transformers=transformers.__version__,
        dllm=dllm.__version__,
        commit=commit(),
    )


def checkpoint_digest(model: DenoisingModel) -> str:
    """Returns a digest of what a model is, whatever it is called.

    Its weights as in `weights_digest`, configuration, special tokens, vocabulary and chat template,
    and the code of a class that is not dllm's.
    """
    tokenizer = model.tokenizer
    inner = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = inner.to_str() if inner is not None else getattr(tokenizer, "get_vocab", dict)()
    parts = (
        weights_digest(model),
        json.dumps(getattr(model, "config", {}), sort_keys=True, default=str),
        repr(model.spec),
        vocabulary if isinstance(vocabulary, str) else json.dumps(vocabulary, sort_keys=True),
        str(getattr(tokenizer, "chat_template", None)),
        digest_of(type(model)),
    )
    return digest([repr(parts).encode("utf-8", "surrogatepass")])


def _attention(model: Any) -> str | None:
    if hasattr(model, "network"):
        return "torch scaled_dot_product_attention"
    config = getattr(getattr(model, "module", None), "config", None)
    return getattr(config, "_attn_implementation", None)


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Returns the commit of the checkout that this code is in, None where it is installed."""
    root = Path(dllm.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):  # no git here, or not our repository
        return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
