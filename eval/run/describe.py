"""What decides the answers of a run: the description that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dllm import cache as caches
from dllm import schedulers
from dllm.decoding.speculation import verifiers
from dllm.eval.tasks import Task
from dllm.models.model import DenoisingModel
from dllm.settings import Settings

# Named one by one in a run's description, or, as the noise, not a part of it.
_DESCRIBED = (
    *("scheduler", "cache", "max_new_tokens", "block_length", "temperature", "top_p", "top_k"),
    *("guidance_scale", "seed", "generator", "noise", "verifier", "batch_size"),
)

_EMBEDDED = "tiny"  # comes with the package, whatever lies in the folder


def describe(model: DenoisingModel, task: Task, settings: Settings) -> dict[str, Any]:
    """Returns what decides the answers, as JSON-ready values.

    A verifier, files and the options of a task are there only if there are any, so that runs which
    were made before one could name them keep their names.
    """
    dtype = getattr(model, "dtype", None)
    parts = _parts(settings)
    files = {place: digest for name, part in parts.items() for place, digest in _files(name, part)}
    return {
        "model": model.name,
        "dtype": None if dtype is None else str(dtype),
        "task": task.name,
        **({"task_options": dict(task.options)} if task.options else {}),
        **parts,
        **({"files": files} if files else {}),
        "max_new_tokens": settings.max_new_tokens,
        "block_length": settings.block_length,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed,
        "other": _changed(settings),
    }


def name_of(described: Mapping[str, Any]) -> str:
    """Returns a short name that is the same for the same description."""
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def seed_of(seed: int | list[int] | None, problem_id: str) -> int:
    """Returns the seed of a problem, which does not depend on its place in a batch."""
    text = f"{seed if isinstance(seed, int) else 0}-{problem_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _parts(settings: Settings) -> dict[str, Any]:
    found = {
        "scheduler": schedulers.registry.create(settings.scheduler).summary(),
        "cache": caches.registry.create(settings.cache).summary(),
    }
    if settings.verifier is not None:
        found["verifier"] = verifiers.registry.create(settings.verifier).summary()
    return found


def _files(place: str, part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the place and the digest of each file that a part's options name.

    What is trained anew under an old name then makes another run.
    """
    found = []
    for key, value in part.items():
        if isinstance(value, Mapping):
            found += _files(f"{place}.{key}", value)
        elif isinstance(value, str) and key != "name":
            file = Path(value).expanduser()
            if value != _EMBEDDED and file.is_file():
                found.append((f"{place}.{key}", _digest(file)))
    return found


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _changed(settings: Settings) -> dict[str, str]:
    """Returns the further settings that are not at their default, as text."""
    return {
        field.name: str(getattr(settings, field.name))
        for field in fields(settings)
        if field.name not in _DESCRIBED and getattr(settings, field.name) != field.default
    }
