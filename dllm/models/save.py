"""Writing a model as a checkpoint folder of its own family."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from dllm.models.checkpoint import WEIGHTS
from dllm.models.families import find_family
from dllm.models.model import HostedModel


def save(model: HostedModel, folder: str | Path) -> None:
    """Writes weights under the family's own names, configuration and tokenizer to a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = find_family(model.config).names
    tensors = {
        names.of(name): weight.detach().cpu().contiguous()
        for name, weight in model.network.named_parameters()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {**model.config, "torch_dtype": str(model.dtype).removeprefix("torch.")}
    _write(folder / "config.json", config)
    if model.defaults:
        _write(folder / "generation_config.json", dict(model.defaults))
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
