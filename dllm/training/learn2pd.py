"""Trains a filter of Learn2PD on an oracle's examples; a stopped run goes on where it was saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.learn2pd import Filter
from dllm.options import Options, Range, Seed
from dllm.training.learn2pd_examples import Examples

FEWEST_PROMPTS = 10  # one of them for validation, one for the test
REPORT_EVERY, SAVE_EVERY = 100, 2000  # epochs

Layers = Annotated[int, Range(1, 64)]
Epochs = Annotated[int, Range(1, 2**30)]
LearningRate = Annotated[float, Range(0, 1e30, above=True)]


@dataclass(frozen=True)
class Recipe(Options):
    """The hyper-parameters; those of the authors (train.ipynb of their repository)."""

    num_layers: Layers = 2
    epochs: Epochs = 40_000  # each is one step on all examples
    learning_rate: LearningRate = 3e-3
    seed: Seed = 0
    masked_only: bool = False  # the loss leaves out columns that were decided before

    def file(self, names: Sequence[str]) -> str:
        """Returns the file that keeps a training on these examples; more epochs go on with it."""
        decides = json.dumps([list(names), {**asdict(self), "epochs": None}])
        return f"training-{hashlib.sha256(decides.encode()).hexdigest()[:12]}.pt"


@dataclass(frozen=True)
class Split:
    """Examples to learn from, to watch, and to judge by; no prompt is in two of them."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Score:
    """Measures of how well a filter judges."""

    loss: float  # nats a column
    accuracy: float  # part of all columns that it judges right at the threshold
    false_accepts: float  # part of the accepted columns that is not final
    masked_false_accepts: float  # the same among columns that were still to be decided
    masked_accepted: float  # part of those columns that it accepts
    masked_final: float  # part of them that is final


def split(examples: Examples, seed: int) -> Split:
    """Returns 80 % of the prompts for training, 10 % for validation and 10 % for the test."""
    count = int(examples.prompt.max()) + 1
    if count < FEWEST_PROMPTS:
        raise ValueError(f"{count} prompts are too few: at least {FEWEST_PROMPTS} are needed")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    tenth = count // 10
    parts = order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth]
    train, validation, test = (examples.at(torch.isin(examples.prompt, part)) for part in parts)
    return Split(train, validation, test)


def loss_of(network: Filter, examples: Examples, counted: Tensor) -> Tensor:
    """Returns the mean binary cross-entropy of the counted columns (N, W) bool, in nats."""
    nats = F.binary_cross_entropy_with_logits(
        network(examples.confidence), examples.final.float(), reduction="none"
    )
    return (nats * counted).sum() / counted.sum()


@torch.no_grad()
def score(network: Filter, examples: Examples, threshold: float) -> Score:
    """Returns how well a filter judges examples if it accepts above a probability."""
    accepted = (network(examples.confidence).sigmoid() > threshold) & examples.real
    final, open_ = examples.final & examples.real, examples.masked & examples.real
    wrong = accepted & ~final

    def part(columns: Tensor, among: Tensor) -> float:
        return float(columns.sum() / among.sum().clamp(min=1))

    return Score(
        loss=float(loss_of(network, examples, examples.real)),
        accuracy=part((accepted == final) & examples.real, examples.real),
        false_accepts=part(wrong, accepted),
        masked_false_accepts=part(wrong & open_, accepted & open_),
        masked_accepted=part(accepted & open_, open_),
        masked_final=part(final & open_, open_),
    )


class Training:
    """A filter in training, with its optimiser, which `state` keeps."""

    def __init__(self, data: Split, recipe: Recipe, state: Path, device: torch.device) -> None:
        self.recipe, self.state = recipe, state
        self.train = data.train.to(device)
        real, masked = self.train.real, self.train.masked
        self.counted = real & masked if recipe.masked_only else real
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.network = Filter(self.train.confidence.shape[1], recipe.num_layers).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=recipe.learning_rate)
        self.epoch = 0
        if state.exists():
            self._resume()

    def run(self) -> Iterator[float]:
        """Trains to the last epoch and yields the loss at times; ValueError if it is not finite."""
        while self.epoch < self.recipe.epochs:
            self.optimizer.zero_grad(set_to_none=True)
            loss = loss_of(self.network, self.train, self.counted)
            loss.backward()
            self.optimizer.step()
            self.epoch += 1
            last = self.epoch == self.recipe.epochs
            if last or self.epoch % SAVE_EVERY == 0:
                if not loss.isfinite():  # before it is saved
                    raise ValueError(
                        f"the loss is {float(loss.detach())} after epoch {self.epoch}: train with "
                        f"a lower rate than lr={self.recipe.learning_rate}"
                    )
                self._save()
            if last or self.epoch % REPORT_EVERY == 0:
                yield float(loss.detach())

    def _save(self) -> None:
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        part = self.state.with_suffix(".part")
        torch.save({"epoch": self.epoch, **parts}, part)
        part.replace(self.state)

    def _resume(self) -> None:
        try:
            state = torch.load(self.state, weights_only=True, map_location=self.train.real.device)
        except (RuntimeError, OSError, EOFError, UnpicklingError):  # damaged: begin anew
            return
        if state["epoch"] <= self.recipe.epochs:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch = state["epoch"]
