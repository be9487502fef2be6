"""Trains the embedded model: `python -m dllm.training.tiny --output FOLDER`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from dllm.eval.tasks import TASKS, arithmetic
from dllm.generate import generate
from dllm.models.config import ModelSpec, NetworkConfig
from dllm.models.families import llada
from dllm.models.loading import load, save
from dllm.models.model import HostedModel
from dllm.models.transformer import Transformer
from dllm.training.tiny_corpus import GROUP, WIDTHS, Batch, Corpus, Mixture, build_tokenizer

VALIDATED = 100  # problems


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a run; steps are batches of 64 rows."""

    steps: int = 4600
    seed: int = 0
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    hold: float = 0.6  # part of the steps before the learning rate falls
    drills_first: float = 0.6  # share of drills at the beginning
    drills_last: float = 0.12  # and after the part `drills_until` of the steps
    drills_until: float = 0.3
    focus: float = 0.25
    families: tuple[float, float, float] = (7, 1.5, 1.5)  # arithmetic, lists, functions
    easy_lists: float = 1.0  # as in `Mixture`
    changed: float = 1.0
    max_length: int = 256

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step: warm-up, constant, cosine to zero."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = max(step / self.steps - self.hold, 0) / (1 - self.hold)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1)))

    def mixture(self, step: int) -> Mixture:
        """Returns what a step draws from; drills fall slowly, a sudden change is forgotten."""
        done = min(step / (self.steps * self.drills_until), 1)
        drills = self.drills_first + (self.drills_last - self.drills_first) * done
        return Mixture(drills, self.focus, self.families, self.easy_lists, self.changed)


# Goes on from a finished network: most rows are lists, and elsewhere it keeps to its teacher.
LISTS = Recipe(
    steps=4000,
    seed=7,
    learning_rate=1e-3,
    hold=0.5,
    drills_first=0.05,
    drills_last=0.05,
    focus=0.1,
    families=(3, 6, 1),
    easy_lists=0.4,
    changed=4.0,
)


def new_network(vocab_size: int, seed: int) -> Transformer:
    """Returns a network of the embedded model's shape with fresh weights."""
    config = NetworkConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_layers=6,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        rope_in_float32=True,
    )
    torch.manual_seed(seed)
    network = Transformer(config)
    for name, weight in network.named_parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.5 if name.startswith("embedding") else 0.02)
        if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.num_layers))
    return network


Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens, columns, attend: to logits


def loss_of(network: Forward, batch: Batch, teacher: Forward | None = None) -> Tensor:
    """Returns the weighted cross-entropy over masked tokens, in nats.

    With a teacher, what rows other than lists should be is its distribution and not the token, so
    that what was learnt stays (learning without forgetting: Li and Hoiem, arXiv 1606.09282).
    """
    columns = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    seen = batch.tokens, columns.expand_as(batch.tokens), batch.attend
    with torch.autocast(batch.tokens.device.type, dtype=torch.bfloat16):
        logits = network(*seen)
        with torch.no_grad():
            known = logits if teacher is None else teacher(*seen)
    wanted = F.one_hot(batch.targets, logits.shape[-1]).float()
    if teacher is not None:
        wanted = torch.where(batch.is_list[:, None, None], wanted, known.float().softmax(-1))
    nats = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(0, 1), reduction="none")
    return (nats * batch.weight.flatten()).sum() / batch.weight.sum()


class Run:
    """A training run in a folder, which resumes where it was stopped.

    It trains a network of the embedded model's shape with fresh weights, or `network`.
    """

    save_every, validate_every = 200, 800  # steps

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        device: str,
        compiled: bool,
        network: Transformer | None = None,
    ) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        self.tokenizer = build_tokenizer()
        self.corpus = Corpus(self.tokenizer, recipe.seed)
        begun = new_network(len(self.tokenizer), recipe.seed) if network is None else network
        self.network = begun.to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        self.compiled = compiled
        torch._dynamo.config.recompile_limit = 4 * len(WIDTHS)  # one graph for each width
        self.forward = self._forward(self.network)
        self.teacher: Forward | None = None
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        told, described = folder / "training.json", json.dumps(asdict(recipe), indent=1)
        if (folder / "state.pt").exists():
            if told.read_text() != described:
                raise ValueError(
                    f"{folder} was begun with another recipe, which its training.json has: give "
                    "what it was begun with, or another --output"
                )
            self._resume()
        told.write_text(described)

    def begin_with(self, network: Transformer) -> None:
        """Takes over a network's weights, unless the run has gone on, and keeps to it."""
        if self.step == 0:
            self.network.load_state_dict(network.state_dict())
        self.keep_to(network)

    def keep_to(self, teacher: Transformer) -> None:
        """Has rows other than lists learn a network's distributions instead of their tokens."""
        self.teacher = self._forward(teacher.to(self.device))

    def train(self) -> None:
        """Runs to the last step."""
        columns = ("{task.description}", BarColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
        with Progress(*columns, TimeRemainingColumn()) as progress:
            bar = progress.add_task("training", total=self.recipe.steps, loss=float("nan"))
            while self.step < self.recipe.steps:
                for batch in self.corpus.batches(self.step, self.recipe.mixture(self.step)):
                    loss = self._update(batch)
                self.step += GROUP
                progress.update(bar, completed=self.step, loss=loss)
                if self.step % self.save_every < GROUP or self.step >= self.recipe.steps:
                    self.save(loss)

    def _forward(self, network: Transformer) -> Forward:
        def logits(tokens: Tensor, columns: Tensor, attend: Tensor) -> Tensor:
            return network.logits(network.hidden(tokens, columns, attend))

        return torch.compile(logits, dynamic=False) if self.compiled else logits

    def _update(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        moved = Batch(**{name: value.to(self.device) for name, value in vars(batch).items()})
        loss = loss_of(self.forward, moved, self.teacher)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def save(self, loss: float) -> None:
        """Writes the checkpoint, the optimiser's state and a line of the log."""
        model = hosted(self.network, self.tokenizer, self.recipe)
        save(model, self.folder)
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"step": self.step, **parts}, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")
        entry: dict[str, float] = {"step": self.step, "loss": round(loss, 5)}
        if self.step % self.validate_every < GROUP or self.step >= self.recipe.steps:
            entry["validation_accuracy"] = accuracy(model)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")

    def _resume(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def accuracy(model: HostedModel) -> float:
    """Returns the part of validation word problems answered right at threshold 0.9.

    Free-running: accuracy on masked tokens is misleading, because a result stands again later in
    the response and is copied from there.
    """
    problems = TASKS["arithmetic"].take(VALIDATED, "validation")
    out = generate(model, [problem.prompt for problem in problems], scheduler="threshold:0.9")
    assert out.texts is not None
    pairs = zip(problems, out.texts, strict=True)
    return sum(arithmetic.is_correct(problem, text) for problem, text in pairs) / VALIDATED


def hosted(network: Transformer, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> HostedModel:
    """Returns the network as a model of LLaDA's architecture, with what its config.json says."""
    shape, mask, end = network.config, tokenizer.mask_token_id, tokenizer.eos_token_id
    special = {"eos_token_id": end, "pad_token_id": end, "mask_token_id": mask}
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": shape.hidden_size,
        "n_layers": shape.num_layers,
        "n_heads": shape.num_heads,
        "n_kv_heads": shape.num_kv_heads,
        "mlp_hidden_size": shape.intermediate_size,
        **llada.SUPPORTED,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_full_precision": shape.rope_in_float32,
        "weight_tying": False,
        "vocab_size": shape.vocab_size,
        "embedding_size": shape.vocab_size,
        "max_sequence_length": recipe.max_length,
        "torch_dtype": "float32",
        **special,
    }
    defaults = {"max_new_tokens": 64, "block_length": 16, "scheduler": "threshold", **special}
    spec = ModelSpec(shape.vocab_size, recipe.max_length, mask, (end,), pad_token_id=end)
    return HostedModel("tiny", network, spec, tokenizer, defaults, config)


def main(  # noqa: PLR0913 a command has an argument for each of its options
    output: Annotated[Path, typer.Option(help="Folder; a stopped run resumes.")],
    lists_of: Annotated[
        str | None, typer.Option(help="A trained checkpoint, which then learns its lists.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches of 64 rows.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and data.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="Needs a C++ compiler.")] = True,
) -> None:
    """Trains the embedded model from nothing, about an hour on two cores; or its lists alone."""
    known = None if lists_of is None else load(lists_of, speed=None).network
    recipe = Recipe() if known is None else LISTS
    seed = recipe.seed if seed is None else seed
    run = Run(output, replace(recipe, steps=steps or recipe.steps, seed=seed), device, compiled)
    if known is not None:
        run.begin_with(known)
    run.train()


if __name__ == "__main__":
    typer.run(main)
