"""Examples for the filter, written batch by batch, so that a stopped run repeats nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dllm import schedulers
from dllm.models.model import HostedModel
from dllm.settings import Settings
from dllm.training.learn2pd.oracle import Examples, collect

_COMPARED = 256  # values of each weight that tell one model from another


@dataclass(frozen=True)
class Source:
    """A model, the prompts that it answers, and the settings of the answers."""

    model: HostedModel
    prompts: Sequence[Any]  # texts or chats
    settings: Settings
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    def names(self) -> list[str]:
        """Returns the file of each batch, named after all that decides what it holds."""
        decides = json.dumps(self._describe(), sort_keys=True)
        starts = range(0, len(self.prompts), self.batch_size)
        return [
            f"{_digest(decides, json.dumps(self._batch(start)))}.safetensors" for start in starts
        ]

    def examples(self, folder: Path) -> Iterator[Examples]:
        """Yields each batch, from `folder` if it is there, and else after it was written there."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(self.names()):
            start = number * self.batch_size
            found = _read(folder / name)
            if found is None:
                found = collect(self.model, self._batch(start), self.settings)
                _write(found, folder / name)
            yield replace(found, prompt=found.prompt + start)

    def _batch(self, start: int) -> list[Any]:
        return list(self.prompts[start : start + self.batch_size])

    def _describe(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": self.model.name,
            "weights": _fingerprint(self.model),
            "dtype": str(self.model.dtype),
            "scheduler": schedulers.registry.create(settings.scheduler).summary(),
            "max_new_tokens": settings.max_new_tokens,
            "block_length": settings.block_length,
            "at_eos": settings.at_eos,
            "statistics_dtype": str(settings.statistics_dtype),
        }


def read_prompts(path: Path, count: int) -> list[str]:
    """Returns up to `count` prompts: the lines of a text file, or each "prompt" of a .jsonl.

    Raises ValueError that names the line which is not one.
    """
    if not path.is_file():
        raise ValueError(f"there is no file of prompts {str(path)!r}")
    prompts: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or len(prompts) == count:
            continue
        prompts.append(_prompt(line, f"{path} line {number}") if path.suffix == ".jsonl" else line)
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    prompt = found.get("prompt") if isinstance(found, dict) else found
    if not isinstance(prompt, str):
        raise ValueError(f'{where} must be a text or a mapping with the text "prompt"')
    return prompt


def _fingerprint(model: HostedModel) -> str:
    """Returns a digest of some of each weight: any training, of adapters too, changes some."""
    digest = hashlib.sha256()
    for weight in model.network.parameters():
        some = weight.detach().reshape(-1)[:_COMPARED]
        digest.update(some.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _read(path: Path) -> Examples | None:
    """Returns the examples of a file, None if it is missing or was cut off."""
    try:
        return Examples(**load_file(path))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None


def _write(examples: Examples, path: Path) -> None:
    part = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in vars(examples).items()}, part)
    part.replace(path)
