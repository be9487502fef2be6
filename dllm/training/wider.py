"""Grows a trained checkpoint: `python -m dllm.training.wider CHECKPOINT --output FOLDER`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from dllm.models.digest import weights_digest
from dllm.models.loading import load
from dllm.models.model import HostedModel
from dllm.training.growth import disturb, likeness, wider
from dllm.training.tiny import Recipe, Run
from dllm.training.tiny_corpus import build_tokenizer


@dataclass(frozen=True)
class Growth(Recipe):
    """The hyper-parameters of growing a checkpoint and of the training that follows.

    All is learnt already but what copies are for, so the learning rate is low and falls early, and
    rows other than lists keep to the narrow network. What it gives is in docs/notes/performance.md.
    """

    steps: int = 400
    seed: int = 11
    learning_rate: float = 4e-4
    warm_up: int = 20
    hold: float = 0.2
    drills_first: float = 0.1
    drills_last: float = 0.1
    focus: float = 0.2
    families: tuple[float, float, float] = (5, 4, 1)
    easy_lists: float = 0.4
    changed: float = 4.0
    times: int = 2  # the width of the narrow network
    noise: float = 0.15  # of each matrix's own size
    grown_from: str = ""  # digest of the narrow network's weights


class GrownRun(Run):
    """The training of a grown network, whose steps are several times as long."""

    save_every, validate_every = 100, 200  # steps


def begin(folder: Path, narrow: HostedModel, recipe: Growth, device: str, compiled: bool) -> Run:
    """Returns the run in a folder that grows a checkpoint, begun or gone on with.

    Raises ValueError for a checkpoint that cannot grow, or that knows other tokens than the corpus,
    and for a folder that another recipe or another checkpoint began.
    """
    check_checkpoint(narrow)
    source = torch.Generator().manual_seed(recipe.seed)
    grown = wider(narrow.network, recipe.times, source)
    disturb(grown, recipe.noise, source)
    run = GrownRun(folder, recipe, device, compiled, grown)
    run.keep_to(narrow.network)
    return run


def check_checkpoint(narrow: HostedModel) -> None:
    """Raises ValueError unless a checkpoint reads all columns at once and knows the corpus."""
    spec = narrow.spec
    if spec.attention != "full" or spec.logit_shift:
        raise ValueError(
            f"a model with attention={spec.attention!r} and logit_shift={spec.logit_shift} cannot "
            "grow here: the training is of LLaDA's, which has full attention and no shift"
        )
    known = {} if narrow.tokenizer is None else narrow.tokenizer.get_vocab()
    if known != build_tokenizer().get_vocab():
        raise ValueError(
            f"{narrow.name} has another vocabulary than the corpus of the embedded model, on which "
            "a grown network trains: give 'tiny' or what dllm.training trained"
        )


def main(  # noqa: PLR0913 a command has an argument for each of its options
    checkpoint: Annotated[str, typer.Argument(help="A trained one of LLaDA's layout, as 'tiny'.")],
    output: Annotated[Path, typer.Option(help="Folder; a stopped run resumes.")],
    times: Annotated[int, typer.Option(min=2, help="Width by the checkpoint's.")] = 2,
    noise: Annotated[
        float, typer.Option(min=0, max=1, help="By the size of a matrix.")
    ] = Growth.noise,
    steps: Annotated[int, typer.Option(min=1, help="Batches of 64 rows.")] = Growth.steps,
    seed: Annotated[int, typer.Option(help="Of shares, noise and data.")] = Growth.seed,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="Needs a C++ compiler.")] = True,
) -> None:
    """Widens a trained checkpoint without changing what it computes, and trains it on."""
    narrow = load(checkpoint, dtype="float32", speed=None)
    digest = weights_digest(narrow) or ""
    recipe = Growth(steps=steps, seed=seed, times=times, noise=noise, grown_from=digest)
    run = begin(output, narrow, recipe, device, compiled)
    run.train()
    typer.echo(json.dumps({"likeness of copies": likeness(run.network, times)}))


if __name__ == "__main__":
    typer.run(main)
