"""Trains the embedded model: `python -m dllm.tiny.train --output FOLDER`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.config import NetworkConfig
from dllm.models.transformer import Transformer
from dllm.tiny.corpus import GROUP, WIDTHS, Batch, Corpus, Mixture
from dllm.tiny.tokenizer import build_tokenizer

SAVE_EVERY = 200  # steps


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
        return Mixture(drills, self.focus, self.families)


def network_config(vocab_size: int) -> NetworkConfig:
    """Returns the shape of the embedded model."""
    return NetworkConfig(
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


def new_network(config: NetworkConfig, seed: int) -> Transformer:
    """Returns a network with fresh weights."""
    torch.manual_seed(seed)
    network = Transformer(config)
    for name, weight in network.named_parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.5 if name.startswith("embedding") else 0.02)
        if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.num_layers))
    return network


def loss_of(network: Any, batch: Batch) -> Tensor:
    """Returns the weighted cross-entropy over masked tokens, in nats."""
    columns = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    with torch.autocast(batch.tokens.device.type, dtype=torch.bfloat16):
        logits = network(batch.tokens, columns.expand_as(batch.tokens), batch.attend)
    nats = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
    return (nats * batch.weight.flatten()).sum() / batch.weight.sum()


class _Trainable(nn.Module):
    """The network with its logits, in one call that can be compiled."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, columns: Tensor, attend: Tensor) -> Tensor:
        return self.network.logits(self.network.hidden(tokens, columns, attend))


class Run:
    """A training run in a folder, which resumes where it was stopped."""

    def __init__(self, folder: Path, recipe: Recipe, device: str, compiled: bool) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        tokenizer = build_tokenizer()
        self.corpus = Corpus(tokenizer, recipe.seed)
        self.network = new_network(network_config(len(tokenizer)), recipe.seed).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        trainable = _Trainable(self.network)
        self.forward: Any = torch.compile(trainable, dynamic=False) if compiled else trainable
        torch._dynamo.config.recompile_limit = 4 * len(WIDTHS)  # one graph for each width
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
        self._resume()

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
                if self.step % SAVE_EVERY < GROUP or self.step >= self.recipe.steps:
                    self.save(loss)

    def _update(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        moved = Batch(**{name: value.to(self.device) for name, value in vars(batch).items()})
        loss = loss_of(self.forward, moved)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def save(self, loss: float) -> None:
        """Writes the checkpoint in LLaDA's layout, the optimiser's state and a line of the log."""
        write_checkpoint(self.network, self.folder, self.corpus, self.recipe.max_length)
        state = {"step": self.step, "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.step, "loss": round(loss, 5)}) + "\n")

    def _resume(self) -> None:
        if not (self.folder / "state.pt").exists():
            return
        from dllm.models.load import load

        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.network.load_state_dict(load(str(self.folder)).network.state_dict())
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


_LLADA_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "q_proj",
    "attention.k": "k_proj",
    "attention.v": "v_proj",
    "attention.out": "attn_out",
    "feed_forward_norm": "ff_norm",
    "feed_forward.gate": "ff_proj",
    "feed_forward.up": "up_proj",
    "feed_forward.down": "ff_out",
}


def write_checkpoint(network: Transformer, folder: Path, corpus: Corpus, max_length: int) -> None:
    """Writes model.safetensors (float32), config.json and generation_config.json."""
    tops = {"embedding": "wte", "norm": "ln_f", "head": "ff_out"}
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        path = name.removesuffix(".weight")
        if path.startswith("blocks."):
            _, layer, part = path.split(".", 2)
            path = f"blocks.{layer}.{_LLADA_NAMES[part]}"
        else:
            path = tops[path]
        tensors[f"model.transformer.{path}.weight"] = tensor.detach().cpu().float().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config_json(network.config, corpus, max_length)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    generation = {
        "max_new_tokens": 64,
        "block_length": 16,
        "scheduler": "threshold",
        "eos_token_id": corpus.end,
        "pad_token_id": corpus.end,
        "mask_token_id": corpus.mask,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")


def _config_json(network: NetworkConfig, corpus: Corpus, max_length: int) -> dict[str, Any]:
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": network.hidden_size,
        "n_layers": network.num_layers,
        "n_heads": network.num_heads,
        "n_kv_heads": network.num_kv_heads,
        "mlp_hidden_size": network.intermediate_size,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "rms_norm_eps": network.rms_norm_eps,
        "rope": True,
        "rope_theta": network.rope_theta,
        "rope_full_precision": True,
        "include_bias": False,
        "include_qkv_bias": False,
        "weight_tying": False,
        "vocab_size": network.vocab_size,
        "embedding_size": network.vocab_size,
        "max_sequence_length": max_length,
        "mask_token_id": corpus.mask,
        "eos_token_id": corpus.end,
        "pad_token_id": corpus.end,
        "torch_dtype": "float32",
    }


def main(
    output: Annotated[Path, typer.Option(help="Folder; a stopped run resumes.")],
    steps: Annotated[int, typer.Option(help="Batches of 64 rows.")] = Recipe.steps,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="Needs a C++ compiler.")] = True,
) -> None:
    """Trains the embedded model from nothing; about an hour on two cores."""
    Run(output, Recipe(steps=steps, seed=seed), device, compiled).train()


if __name__ == "__main__":
    typer.run(main)
