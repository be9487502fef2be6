"""Loading a checkpoint, by hub id or from a folder, onto the project's own transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from dllm.models.checkpoint import Checkpoint, open_checkpoint, read_json
from dllm.models.config import ModelSpec
from dllm.models.errors import CheckpointError, first_few
from dllm.models.families import Family, find_family
from dllm.models.model import HostedModel
from dllm.models.tokenizer import PreTrainedTokenizerBase, load_tokenizer, token_id
from dllm.models.transformer import Transformer

EMBEDDED = {"tiny": Path(__file__).parent.parent / "tiny" / "checkpoint"}
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model")
DeviceMap = str | Mapping[str, int | str | torch.device]


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    revision: str | None = None,
) -> HostedModel:
    """Returns a model from the embedded checkpoint ("tiny"), a folder or a hub id.

    `dtype` is the checkpoint's own unless given. `device_map` ("auto" or module -> device) spreads
    the layers through accelerate and excludes `device`. Raises CheckpointError, a ValueError, for
    anything that is missing, unknown, mis-shaped or damaged.
    """
    if device is not None and device_map is not None:
        raise ValueError("give device or device_map, not both")
    folder = find_folder(name_or_path, revision)
    config = read_json(folder / "config.json", required=True)
    if config.get("quantization_config"):
        raise CheckpointError(f"{folder} is quantised; load the original checkpoint instead")
    family = find_family(config)
    chosen = read_dtype(dtype, config)
    tokenizer = load_tokenizer(folder)
    generation = read_json(folder / "generation_config.json")
    with init_empty_weights(include_buffers=False):
        network = Transformer(family.read_network(config))
    network.eval().requires_grad_(False)
    placement = _placement(network, chosen, device, device_map)
    _fill(network, family, open_checkpoint(folder), _Target(chosen, placement))
    if device_map is not None:
        network = dispatch_model(network, placement)
    spec = read_spec(family, config, generation, tokenizer)
    return HostedModel(str(name_or_path), network, spec, tokenizer, generation, config)


def find_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Returns the folder of a checkpoint; a hub id is downloaded, without any code files."""
    name = str(name_or_path)
    if name in EMBEDDED:
        return EMBEDDED[name]
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(name_or_path, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{name!r} is neither an existing folder, nor a hub id (owner/name), nor embedded "
            f"({', '.join(EMBEDDED)})"
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name!r} is no folder here and could not be downloaded ({error}): without network, "
            "download the folder elsewhere and pass its path"
        ) from error


def read_dtype(dtype: torch.dtype | str | None, config: Mapping[str, Any]) -> torch.dtype:
    """Returns the dtype of the weights; None or "auto" is the checkpoint's own."""
    if dtype is None or dtype == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype)
    name = dtype.removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: known: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def read_spec(
    family: Family,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> ModelSpec:
    """Returns what decoding must know; ids from the configuration, else from the tokenizer."""
    mask = config.get("mask_token_id")
    if mask is None:
        mask = token_id(tokenizer, family.mask_tokens)
    if mask is None:
        raise CheckpointError(
            f"no mask token: config.json has no 'mask_token_id' and the tokenizer has none of "
            f"{', '.join(family.mask_tokens)}"
        )
    ends: list[int] = []
    for found in (generation.get("eos_token_id"), config.get("eos_token_id")):
        ends += [found] if isinstance(found, int) else list(found or ())
    turn_end = token_id(tokenizer, family.turn_ends)
    ends += [] if turn_end is None else [turn_end]
    pad = config.get("pad_token_id")
    return ModelSpec(
        vocab_size=family.read_network(config).vocab_size,
        max_length=family.read_max_length(config),
        mask_token_id=int(mask),
        eos_token_ids=tuple(dict.fromkeys(ends)),
        pad_token_id=int(pad if pad is not None else ends[0] if ends else mask),
        logit_shift=family.logit_shift,
        attention=family.attention,
        block_length=family.read_block_length(config),
    )


@dataclass(frozen=True)
class _Target:
    dtype: torch.dtype
    placement: Mapping[str, Any]  # module prefix -> device; "" for all

    def device(self, parameter: str) -> Any:
        """Returns the device of the longest prefix that names a parameter."""
        fitting = [
            prefix
            for prefix in self.placement
            if prefix == "" or parameter == prefix or parameter.startswith(prefix + ".")
        ]
        return self.placement[max(fitting, key=len)]


def _placement(
    network: Transformer,
    dtype: torch.dtype,
    device: torch.device | str | None,
    device_map: DeviceMap | None,
) -> dict[str, Any]:
    if device_map is None:
        return {"": torch.device(device or "cpu")}
    if isinstance(device_map, str):
        if device_map != "auto":
            raise ValueError(f"device_map={device_map!r} must be 'auto' or a mapping")
        return dict(infer_auto_device_map(network, dtype=dtype, no_split_module_classes=["Block"]))
    return dict(device_map)


def _fill(network: Transformer, family: Family, checkpoint: Checkpoint, target: _Target) -> None:
    """Puts every tensor of a checkpoint in its place, one at a time."""
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    wanted = {name: family.names.of(name) for name in shapes}
    _compare(checkpoint, wanted, shapes, network.config.tie_embeddings, family)
    for name, tensor in checkpoint.tensors(wanted):
        set_module_tensor_to_device(
            network, name, target.device(name), value=tensor, dtype=target.dtype
        )
    if network.config.tie_embeddings:
        network.head.weight = network.embedding.weight


def _compare(
    checkpoint: Checkpoint,
    wanted: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    tied: bool,
    family: Family,
) -> None:
    stored = {name for name in checkpoint.shards if not name.endswith("rotary_emb.inv_freq")}
    extra = stored - set(wanted.values())
    if tied:  # a stored copy of the tied head is redundant, and ignored
        extra -= {f"{family.names.head}.weight"}
    missing = sorted(set(wanted.values()) - stored)
    if missing:
        raise CheckpointError(f"{checkpoint.folder} lacks {len(missing)} tensors: {first_few(missing)}")
    if extra:
        raise CheckpointError(
            f"{checkpoint.folder} has {len(extra)} tensors that {family.architecture} does not "
            f"use: {first_few(sorted(extra))}"
        )
    wrong = [
        f"{name} is {list(checkpoint.shape(name))}, expected {list(shapes[parameter])}"
        for parameter, name in wanted.items()
        if checkpoint.shape(name) != shapes[parameter]
    ]
    if wrong:
        raise CheckpointError(f"{checkpoint.folder} has mis-shaped tensors: {first_few(wrong)}")
