"""`dllm train-context-filter`: trains the filter that `context_filter` decodes with."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.progress import Progress
from typer import Option

from dllm.cli import defaults, options
from dllm.cli.asked import read_texts
from dllm.cli.chosen import collect
from dllm.cli.loading import load_model, placed
from dllm.cli.shown import Terminal
from dllm.cli.shown.measured import progress
from dllm.eval.tasks import find_task
from dllm.generate import generate
from dllm.learn2pd import Origin
from dllm.learn2pd.context import ContextNetwork, write_context_filter
from dllm.models.model import HostedModel
from dllm.options import Count, checked
from dllm.schedulers import registry
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings, resolve
from dllm.training.context_filter import (
    FEWEST_PROMPTS,
    Course,
    Lesson,
    Rate,
    Recipe,
    join,
    score,
    split,
    train,
)

WRITTEN = "written"  # the task's own responses
JUDGED_AT = 0.98  # probability at which the report counts


def train_context_filter(
    output: Annotated[Path, Option("--output", "-o", help="FILE.safetensors.")],
    model: options.Model = "tiny",
    revision: options.Revision = None,
    prompts: options.Prompts = None,
    task: Annotated[
        str | None,
        Option(help="Prompts of a task's training split, such as arithmetic.", show_default="none"),
    ] = None,
    count: Annotated[int, Option(help="Prompts at most, shared by the rounds.")] = 9000,
    reference: Annotated[
        str,
        Option(
            help=f'Right answers: those of a scheduler, or "{WRITTEN}", the responses that a task '
            "comes with."
        ),
    ] = "fixed_quota",
    chat_template: options.ChatTemplate = False,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    batch_size: options.Together = 64,
    rounds: Annotated[int, Option(help="Of decoding and training.")] = defaults.ROUNDS,
    steps: Annotated[
        int, Option(help="Of the last training; those before have a quarter.")
    ] = defaults.STEPS,
    lr: Annotated[float, Option(help="The highest learning rate.")] = defaults.CONTEXT_RATE,
    seed: Annotated[int, Option(help="Of prompts, thresholds and weights.")] = 0,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    as_json: options.Json = False,
) -> None:
    """Trains a filter that reads a prediction with its neighbours, for one model.

    dllm train-context-filter --task arithmetic --reference written --output context.safetensors
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"output={str(output)!r} must end in .safetensors")
    options.check_writable(output, "--output", mark='"context_filter"')
    for name, number in {"count": count, "batch_size": batch_size}.items():
        checked(name, number, Count)
    checked("lr", lr, Rate)  # as the command line calls it
    recipe = Recipe(rounds, steps, lr, seed)
    loaded = load_model(model, dtype, placed(device, device_map, revision, adapter))
    chosen = collect(None, max_new_tokens, block_length)
    settings = resolve(loaded.defaults, None, {**chosen, "temperature": 0.0, "cache": "none"})
    own = loaded.spec.block_length or min(DEFAULT_BLOCK_LENGTH, settings.max_new_tokens)
    settings = replace(settings, block_length=settings.block_length or own)
    asked = _Asked(prompts, task, count, reference, chat_template)
    course = asked.course(loaded, settings, batch_size, seed)
    network = _Job(course, recipe, reference).run()
    write_context_filter(network, output)
    assert network.origin is not None
    if as_json:
        print(json.dumps({"filter": str(output), **asdict(network.origin)}))
        return
    console = Terminal()
    for name, value in network.origin.figures.items():
        console.print(f"{name.replace('_', ' ')}: {value:g}")
    console.print(f"{output}: use it with --scheduler context_filter:{output}", soft_wrap=True)


@dataclass(frozen=True)
class _Asked:
    """The prompts of a command and their right answers."""

    prompts: Path | None
    task: str | None
    count: int
    reference: str
    as_chats: bool

    def course(self, model: HostedModel, settings: Settings, batch_size: int, seed: int) -> Course:
        """Returns prompts, short ones first, with their answers."""
        if (self.prompts is None) == (self.task is None):
            raise ValueError("give --prompts FILE or --task NAME, one of them")
        if self.reference != WRITTEN:
            registry.create(self.reference)  # an unknown one is an error now
        elif self.task is None:
            raise ValueError("--reference written goes with --task, whose problems have responses")
        if self.task is None:
            assert self.prompts is not None
            pairs = [(text, "") for text in read_texts(self.prompts, self.count)]
        else:
            problems = find_task(self.task).take(self.count, "train", seed)
            pairs = [(problem.prompt, problem.response) for problem in problems]
        if len(pairs) < FEWEST_PROMPTS:
            few = len(pairs)
            raise ValueError(f"{few} prompts are too few: at least {FEWEST_PROMPTS} are needed")
        pairs.sort(key=lambda pair: len(pair[0]))
        inputs = options.inputs([text for text, _ in pairs], self.as_chats)
        responses = [response for _, response in pairs]
        if self.reference == WRITTEN:
            answers = self._encoded(model, responses)
        else:
            answers = self._decoded(model, settings, inputs, batch_size)
        return Course(model, inputs, answers, settings, batch_size)

    def _encoded(self, model: HostedModel, responses: list[str]) -> list[list[int]]:
        if model.tokenizer is None:
            raise ValueError(f"{model.name} has no tokenizer, which reads written responses")
        if not all(responses):
            raise ValueError(f"--task {self.task} has no written responses: name a scheduler")
        encode: Any = model.tokenizer.encode
        return [encode(response, add_special_tokens=False) for response in responses]

    def _decoded(
        self, model: HostedModel, settings: Settings, inputs: Any, batch_size: int
    ) -> list[list[int]]:
        slow, answers = replace(settings, scheduler=registry.create(self.reference)), []
        with progress() as bars:
            bar = bars.add_task("reference", total=len(inputs), note="")
            for start in range(0, len(inputs), batch_size):
                rows = generate(model, inputs[start : start + batch_size], slow).sequences
                answers += [list(row[-settings.max_new_tokens :]) for row in rows]
                bars.update(bar, completed=len(answers))
        return answers


@dataclass(frozen=True)
class _Job:
    """All rounds of decoding and training."""

    course: Course
    recipe: Recipe
    reference: str

    def run(self) -> ContextNetwork:
        """Returns the trained filter, with what it was trained on and how well it judges."""
        started, recipe = time.perf_counter(), self.recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        parts: list[Lesson] = []
        network = None
        with progress() as bars:
            for number in range(1, recipe.rounds + 1):
                # Prompts of its own: a filter that has learnt a prompt judges it too surely.
                course = self.course.part(number - 1, recipe.rounds)
                bar = bars.add_task(f"decoding {number}", total=len(course.prompts), note="")
                for part in course.lessons(network, generator):
                    parts.append(part.of_round(number - 1, recipe.rounds))
                    bars.update(bar, completed=int(part.prompt.max()) + 1)
                learnt, held = split(join(parts), len(self.course.prompts), recipe.seed)
                network = self._trained(learnt, number, bars)
        assert network is not None
        figures = {"examples": float(learnt.prompt.numel()), **score(network, held, JUDGED_AT)}
        network.origin = self._origin(time.perf_counter() - started, figures)
        return network

    def _trained(self, lesson: Lesson, number: int, bars: Progress) -> ContextNetwork:
        """Returns the network of a round."""
        recipe, size = self.recipe, self.course.model.spec.vocab_size
        steps = recipe.steps if number == recipe.rounds else max(recipe.steps // 4, 1)
        bar = bars.add_task(f"training {number}", total=steps, note="")

        def report(step: int) -> None:
            bars.update(bar, completed=step)

        return train(lesson, size, recipe, steps, report)

    def _origin(self, seconds: float, judged: dict[str, float]) -> Origin:
        model, settings = self.course.model, self.course.settings
        assert settings.block_length is not None
        return Origin(
            model=model.name,
            vocab_size=model.spec.vocab_size,
            mask_token_id=model.spec.mask_token_id,
            block_length=settings.block_length,
            model_dtype=str(model.dtype).removeprefix("torch."),
            confidence_dtype=str(settings.statistics_dtype).removeprefix("torch."),
            figures={
                "prompts": len(self.course.prompts),
                "seconds": round(seconds, 1),
                **{name: float(value) for name, value in asdict(self.recipe).items()},
                **judged,
            },
        )
