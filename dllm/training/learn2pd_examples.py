"""Examples that a filter learns from: what an oracle accepts, batch by batch, kept in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm import schedulers
from dllm.generate import Stream, generate, stream
from dllm.models.model import DenoisingModel, HostedModel
from dllm.options import Count, Options
from dllm.prompts import Prompts
from dllm.schedulers import Decision, Needs, Scheduler, Setup, View
from dllm.settings import Settings
from dllm.state.candidates import Candidates
from dllm.state.carried import State

_COMPARED = 256  # values of each weight that tell one model from another


@dataclass(frozen=True)
class Examples:
    """N blocks as a pass saw them."""

    confidence: Tensor  # (N, W) float32 of the proposed tokens
    final: Tensor  # (N, W) bool: the proposed token is the one that will stand there
    masked: Tensor  # (N, W) bool: it was still to be decided
    real: Tensor  # (N, W) bool: the column is within the row
    prompt: Tensor  # (N,) int64 which prompt the block is of

    def at(self, index: Tensor) -> Examples:
        """Returns the examples at an index, (n,) int64 or (N,) bool."""
        return Examples(**{name: value[index] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> Examples:
        """Returns the examples on a device."""
        return Examples(**{name: value.to(device) for name, value in vars(self).items()})


def join(parts: Sequence[Examples]) -> Examples:
    """Returns all examples of one or more sets, on the CPU."""
    names = vars(parts[0])
    return Examples(**{name: torch.cat([getattr(p, name).cpu() for p in parts]) for name in names})


@dataclass(frozen=True, eq=False)
class Oracle(Scheduler):
    """Commits the block's columns whose proposed token equals the reference.

    If a pass proposes for the whole block what the last one did, the rest of the block is given:
    some columns are never proposed right (the authors' guard).
    """

    reference: Tensor  # (N, C) int64 by prompt and canvas column

    source: ClassVar[str] = (
        "arXiv 2509.25188 (extremely greedy parallel); ims-kdks/Learning-to-Parallel-Decoding "
        "llada/generate_training_data.py:generate_data"
    )

    may_skip = True
    constant_needs = Needs(whole_block=True)  # the filter sees committed columns, too

    def start(self, setup: Setup) -> State:
        shape = (setup.num_rows, setup.width)
        return {"proposed": torch.full(shape, -1, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        known = view.columns.clamp(max=self.reference.shape[1] - 1)
        reference = self.reference[view.prompts].gather(1, known)
        real = view.columns < view.length[:, None]
        again = ((candidates.token == view.state["proposed"]) | ~real).all(1)
        stuck = again & (view.block_step > 0)
        commit = (candidates.token == reference) | stuck[:, None]
        return Decision(commit, tokens=reference, state={"proposed": candidates.token})


def collect(model: DenoisingModel, prompts: Prompts, settings: Settings) -> Examples:
    """Returns what the oracle's run over a batch of prompts shows, a block and pass at a time.

    The reference is the model's own answer under `settings`, whose scheduler should be slow.
    """
    answered = generate(model, prompts, settings).sequences
    longest = max(map(len, answered))
    by_column = [[*tokens, *[-1] * (longest - len(tokens))] for tokens in answered]
    oracle = Oracle(torch.tensor(by_column, device=model.device))
    settings = replace(settings, scheduler=oracle, batch_size=len(answered))
    return observe(stream(model, prompts, settings), oracle.reference)


def observe(running: Stream, reference: Tensor) -> Examples:
    """Drains an oracle's run and returns its examples, in the order of passes, then seats.

    `reference` is (N, C) int64 by prompt and canvas column, of all prompts of the run.
    """
    parts, before = [], reference.new_zeros(len(reference))  # forwards of each prompt
    mask = running.canvas.layout.mask_token_id
    for event in running:
        columns, step = event.columns, running.canvas.step
        prompts = torch.tensor(event.prompts, device=columns.device)
        known = columns.clamp(max=reference.shape[1] - 1)
        blocks = Examples(  # of all rows, (B, W)
            confidence=event.confidence.float(),
            final=event.drafts == reference[prompts].gather(1, known),
            masked=event.committed | (event.tokens == mask),
            real=columns < running.canvas.length[:, None],
            prompt=prompts,
        )
        parts.append(blocks.at(step > before[prompts]))
        before[prompts] = step
    return join(parts)


@dataclass(frozen=True)
class Source(Options):
    """A model, the prompts that it answers, and the settings of the answers.

    Examples are written batch by batch, so that a stopped run repeats nothing.
    """

    model: HostedModel
    prompts: Sequence[Any]  # texts or chats
    settings: Settings
    batch_size: Count = 32

    def names(self) -> list[str]:
        """Returns the file of each batch, named after all that decides what it holds."""
        settings = self.settings
        described: dict[str, Any] = {
            "model": self.model.name,
            "weights": _fingerprint(self.model),
            "dtype": str(self.model.dtype),
            "scheduler": schedulers.registry.create(settings.scheduler).summary(),
            "statistics_dtype": str(settings.statistics_dtype),
        }
        for name in ("max_new_tokens", "block_length", "at_eos"):
            described[name] = getattr(settings, name)
        decides = json.dumps(described, sort_keys=True)
        starts = range(0, len(self.prompts), self.batch_size)
        texts = (f"{decides}\n{json.dumps(self._batch(start))}".encode() for start in starts)
        return [f"{hashlib.sha256(text).hexdigest()[:16]}.safetensors" for text in texts]

    def examples(self, folder: Path) -> Iterator[Examples]:
        """Yields each batch, from `folder` if it is there, and else after it was written there."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(self.names()):
            start = number * self.batch_size
            examples = _read(folder / name)
            if examples is None:
                examples = collect(self.model, self._batch(start), self.settings)
                contiguous = {key: value.contiguous() for key, value in vars(examples).items()}
                part = (folder / name).with_suffix(".part")
                save_file(contiguous, part)
                part.replace(folder / name)
            yield replace(examples, prompt=examples.prompt + start)

    def _batch(self, start: int) -> list[Any]:
        return list(self.prompts[start : start + self.batch_size])


def _fingerprint(model: HostedModel) -> str:
    """Returns a digest of some of each weight: any training, of adapters too, changes some."""
    digest = hashlib.sha256()
    for weight in model.network.parameters():
        some = weight.detach().reshape(-1)[:_COMPARED]
        digest.update(some.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Examples | None:
    """Returns the examples of a file, None if it is missing or was cut off."""
    try:
        return Examples(**load_file(path))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None
