"""The filter of Learn2PD: a small network that judges a block's predictions by confidence."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.config import ModelSpec
from dllm.reading import parse_json

TINY = Path(__file__).parent / "tiny.safetensors"
_KEY = "learn2pd"  # of the origin in the file's metadata

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The model and block length that a filter was trained for, the only ones that it serves."""

    model: str
    vocab_size: int
    mask_token_id: int
    block_length: int
    model_dtype: str
    confidence_dtype: str
    figures: Mapping[str, float]  # of the training


class Filter(nn.Module):
    """Linear layers of one width with ReLU between them; a positive output says "final".

    arXiv 2509.25188 section 4; the class is not among the authors' published files, its form is
    read off a fork. Two layers of 32 have the published 2,112 parameters.
    """

    def __init__(self, width: int, num_layers: int = 2, origin: Origin | None = None) -> None:
        super().__init__()
        if width < 1 or num_layers < 1:
            raise ValueError(f"width={width} and num_layers={num_layers} must be at least 1")
        self.width, self.num_layers, self.origin = width, num_layers, origin
        self.path = ""  # where it was read from
        for number in range(1, num_layers + 1):
            self.add_module(f"linear{number}", nn.Linear(width, width))
        self._placed: dict[torch.device, Filter] = {}

    def forward(self, confidence: Tensor) -> Tensor:
        """Returns logits (..., W) for confidences (..., W); fewer than its width are padded."""
        columns = confidence.shape[-1]
        assert columns <= self.width
        hidden = F.pad(confidence.float(), (0, self.width - columns))
        for number, linear in enumerate(self.children()):
            hidden = linear(hidden.relu() if number else hidden)
        return hidden[..., :columns]

    def on(self, device: torch.device) -> Filter:
        """Returns the filter on a device, where it is put once."""
        if device == next(self.parameters()).device:
            return self
        if device not in self._placed:
            self._placed[device] = deepcopy(self).to(device).requires_grad_(False)
        return self._placed[device]

    def check_block(self, block_length: int) -> None:
        """Raises ValueError if a block is too long; warns if the filter was trained on another."""
        if block_length > self.width:
            raise ValueError(
                f"filter {self.path!r} serves blocks of up to {self.width} columns, not "
                f"block_length={block_length}: `dllm train-filter --block-length {block_length}` "
                "trains one"
            )
        if self.origin is not None and block_length != self.origin.block_length:
            _warn_once(
                f"filter {self.path!r} was trained on blocks of {self.origin.block_length} "
                f"columns, not of {block_length}"
            )

    def check_model(self, spec: ModelSpec) -> None:
        """Raises ValueError if the filter was trained on what must be another model."""
        origin, served = self.origin, (spec.vocab_size, spec.mask_token_id)
        if origin is not None and (origin.vocab_size, origin.mask_token_id) != served:
            raise ValueError(
                f"filter {self.path!r} was trained on model {origin.model!r} (vocabulary of "
                f"{origin.vocab_size}, mask token {origin.mask_token_id}) and this one has "
                f"{spec.vocab_size} and {spec.mask_token_id}: `dllm train-filter` trains one for "
                "it, foreign=true takes this one all the same"
            )


def write_filter(network: Filter, path: Path) -> None:
    """Writes a filter with its origin; the file is there in full or not at all."""
    write_weights(network, network.origin, path)


def write_weights(network: nn.Module, origin: Origin | None, path: Path, key: str = _KEY) -> None:
    """Writes the weights of a network, its origin under a key; all of the file or nothing."""
    metadata = None if origin is None else {key: json.dumps(asdict(origin))}
    weights = {name: one.detach().cpu().contiguous() for name, one in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(weights, part, metadata)
    part.replace(path)


def read_filter(given: str | Path) -> Filter:
    """Returns the filter of a file, or the embedded model's for "tiny".

    A file without an origin, such as a converted one of the authors', serves any model. Raises
    ValueError that says what is missing, unknown or mis-shaped.
    """
    path = TINY if given == "tiny" else Path(given).expanduser()
    if not path.is_file():
        raise ValueError(
            f"there is no filter file {str(path)!r}: `dllm train-filter` trains one, 'tiny' is the "
            "embedded model's"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = _build(weights, read_origin(metadata))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a Learn2PD filter: {error}") from None
    network.path = str(given)
    return network


def _build(weights: Mapping[str, Tensor], origin: Origin | None) -> Filter:
    """Returns the filter that has these weights; its width and depth are read off them."""
    num_layers = max(len(weights) // 2, 1)
    layers = [f"linear{number}" for number in range(1, num_layers + 1)]
    expected = {f"{layer}.{name}" for layer in layers for name in ("weight", "bias")}
    if set(weights) != expected:
        raise ValueError(f"it holds {sorted(weights)}, not linear1.weight, linear1.bias, ...")
    width = weights["linear1.bias"].numel()
    for name, weight in weights.items():
        shape = (width, width) if name.endswith("weight") else (width,)
        if tuple(weight.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(weight.shape)}, expected {shape}")
        if not weight.isfinite().all():
            raise ValueError(f"{name} is not finite")
    network = Filter(width, num_layers, origin)
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network.requires_grad_(False)


def read_origin(metadata: Mapping[str, str], key: str = _KEY) -> Origin | None:
    """Returns the origin in a file's metadata, None without one; ValueError if it is damaged."""
    if key not in metadata:
        return None
    try:
        found: dict[str, Any] = parse_json(metadata[key], key)
        return Origin(**{field.name: found[field.name] for field in fields(Origin)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its metadata {key!r} cannot be read: {error!r}") from None


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning(message)
