"""`dllm train-filter`: trains the filter that `learn2pd` decodes with."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from rich.progress import Progress
from rich.table import Table
from typer import Option

from dllm.cli import defaults, options
from dllm.cli.asked import read_texts
from dllm.cli.chosen import collect
from dllm.cli.loading import load_model, placed
from dllm.cli.shown import Terminal
from dllm.cli.shown.measured import interrupted, progress
from dllm.eval.tasks import find_task
from dllm.learn2pd import Filter, Origin, write_filter
from dllm.options import Count, Probability, checked
from dllm.settings import DEFAULT_BLOCK_LENGTH, resolve
from dllm.training.learn2pd import (
    FEWEST_PROMPTS,
    Epochs,
    Layers,
    LearningRate,
    Recipe,
    Score,
    Split,
    Training,
    score,
    split,
)
from dllm.training.learn2pd_examples import Source, join


def train_filter(
    output: Annotated[
        Path, Option("--output", "-o", help="FILE.safetensors; its data goes to FILE.data.")
    ],
    model: options.Model = "tiny",
    revision: options.Revision = None,
    prompts: options.Prompts = None,
    task: Annotated[
        str | None,
        Option(help="Prompts of a task's training split, such as arithmetic.", show_default="none"),
    ] = None,
    count: Annotated[int, Option(help="Prompts at most.")] = 1000,
    chat_template: options.ChatTemplate = False,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    steps: Annotated[
        int | None, Option(help="Of the reference answer.", show_default="one for each token")
    ] = None,
    at_eos: Annotated[
        str, Option(help='"stop" as decoding does, or "ignore" as the authors did.')
    ] = "stop",
    batch_size: options.Together = 32,
    layers: Annotated[int, Option(help="Linear layers of the filter: 1, 2, 4.")] = 2,
    epochs: Annotated[int, Option(help="Steps on all examples.")] = defaults.EPOCHS,
    lr: Annotated[float, Option(help="Learning rate of AdamW.")] = defaults.FILTER_RATE,
    masked_only: Annotated[
        bool, Option("--masked-only", help="Leave decided columns out of the loss.")
    ] = False,
    threshold: Annotated[float, Option(help="At which the filter is judged.")] = 0.96,
    seed: Annotated[int, Option(help="Of prompts, split and weights.")] = 0,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    as_json: options.Json = False,
) -> None:
    """Trains a Learn2PD filter for one model and block length; a stopped run goes on.

    dllm train-filter --task arithmetic --output filter.safetensors
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"output={str(output)!r} must end in .safetensors")
    options.check_writable(output, "--output", mark='"learn2pd"')
    checked("threshold", threshold, Probability)
    named = {"layers": (layers, Layers), "epochs": (epochs, Epochs), "lr": (lr, LearningRate)}
    for name, (value, hint) in named.items():  # as the command line calls them
        checked(name, value, hint)
    recipe = Recipe(layers, epochs, lr, seed, masked_only)
    texts = _prompts(prompts, task, count, seed)
    loaded = load_model(model, dtype, placed(device, device_map, revision, adapter))
    slow = {"name": "fixed_quota", "steps": steps}
    chosen = collect(None, max_new_tokens, block_length, scheduler=slow, at_eos=at_eos)
    inputs = options.inputs(texts, chat_template)
    # The reference is decoded slowly, without noise or a cache.
    settings = resolve(loaded.defaults, None, {**chosen, "temperature": 0.0, "cache": "none"})
    own = loaded.spec.block_length or min(DEFAULT_BLOCK_LENGTH, settings.max_new_tokens)
    settings = replace(settings, block_length=settings.block_length or own)
    source = Source(loaded, inputs, settings, batch_size)
    job = _Job(source, recipe, threshold, output.with_suffix(".data"))
    try:
        network = job.run()
    except KeyboardInterrupt:
        interrupted(job.folder)
    write_filter(network, output)
    _report(network, output, as_json)


@dataclass(frozen=True)
class _Job:
    """Both phases: the examples, then the training."""

    source: Source
    recipe: Recipe
    threshold: float
    folder: Path

    def run(self) -> Filter:
        """Returns the trained filter, with what it was trained on and how well it judges."""
        started = time.perf_counter()
        with progress() as bars:
            bar, parts = bars.add_task("oracle", total=len(self.source.prompts), note=""), []
            for part in self.source.examples(self.folder):
                parts.append(part)
                bars.update(bar, completed=int(part.prompt.max()) + 1)
            data = split(join(parts), self.recipe.seed)
            network = self._train(data, bars)
        network.origin = self._origin(network, data, time.perf_counter() - started)
        return network

    def _train(self, data: Split, bars: Progress) -> Filter:
        state = self.folder / self.recipe.file(self.source.names())
        training = Training(data, self.recipe, state, self.source.model.device)
        bar = bars.add_task("training", total=self.recipe.epochs, note="")
        for loss in training.run():
            bars.update(bar, completed=training.epoch, note=f"loss {loss:.4f}")
        bars.update(bar, completed=training.epoch)
        return training.network.cpu()

    def _origin(self, network: Filter, data: Split, seconds: float) -> Origin:
        model, settings = self.source.model, self.source.settings
        assert settings.block_length is not None
        judged = {"validation": data.validation, "test": data.test}
        figures: dict[str, float] = {
            "prompts": len(self.source.prompts),
            "examples": len(data.train.prompt),
            "threshold": self.threshold,
            "seconds": round(seconds, 1),
            **{name: float(value) for name, value in asdict(self.recipe).items()},
        }
        for part, examples in judged.items():
            for name, value in asdict(score(network, examples, self.threshold)).items():
                figures[f"{part}_{name}"] = round(value, 5)
        return Origin(
            model=model.name,
            vocab_size=model.spec.vocab_size,
            mask_token_id=model.spec.mask_token_id,
            block_length=settings.block_length,
            model_dtype=str(model.dtype).removeprefix("torch."),
            confidence_dtype=str(settings.statistics_dtype).removeprefix("torch."),
            figures=figures,
        )


def _prompts(prompts: Path | None, task: str | None, count: int, seed: int) -> list[str]:
    """Returns the prompts, short ones first: a batch of one length has little padding."""
    if (prompts is None) == (task is None):
        raise ValueError("give --prompts FILE or --task NAME, one of them")
    checked("count", count, Count)
    if prompts is not None:
        texts = read_texts(prompts, count)
    elif task is not None:
        texts = [problem.prompt for problem in find_task(task).take(count, "train", seed)]
    if len(texts) < FEWEST_PROMPTS:
        raise ValueError(f"{len(texts)} prompts are too few: at least {FEWEST_PROMPTS} are needed")
    return sorted(texts, key=len)


def _report(network: Filter, output: Path, as_json: bool) -> None:
    assert network.origin is not None
    figures = network.origin.figures
    if as_json:
        print(json.dumps({"filter": str(output), **asdict(network.origin)}))
        return
    table = Table("", "validation", "test")
    for name in (field.name for field in fields(Score)):
        values = (f"{figures[f'{part}_{name}']:.4f}" for part in ("validation", "test"))
        table.add_row(name.replace("_", " "), *values)
    console = Terminal()
    console.print_table(table)
    console.print(f"{output}: use it with --scheduler learn2pd:{output}", soft_wrap=True)
