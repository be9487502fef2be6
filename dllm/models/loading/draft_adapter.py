"""A LoRA that a model drafts with, and does nothing else with: added in those passes alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from dllm.models.config import CheckpointError, NetworkConfig
from dllm.models.families.family import TensorNames
from dllm.models.layers import Block
from dllm.models.loading.adapter import Adapter
from dllm.models.loading.checkpoint import Checkpoint
from dllm.models.loading.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from dllm.models.loading.folder import Source, find_folder
from dllm.models.low_rank import Adapted, LowRank
from dllm.models.model import HostedModel, execution_device


@dataclass(frozen=True)
class DraftAdapter:
    """The LoRA of a folder, of attention's output projections (NVIDIA's linear_spec_lora)."""

    adapter: Adapter
    names: TensorNames

    def check(self, config: NetworkConfig) -> None:
        """Raises CheckpointError unless it adapts output projections alone, in their shapes."""
        shape = (config.hidden_size, config.num_heads * config.head_dim)
        modules = [f"{self._module(layer)}.weight" for layer in range(config.num_layers)]
        self.adapter.check(dict.fromkeys(modules, shape))

    def attached(self, model: HostedModel) -> HostedModel:
        """Returns a model whose drafting passes add it; no other pass does."""
        for layer, module in enumerate(model.network.blocks):
            block = cast("Block", module)
            found = self.adapter.low_rank(self._module(layer))
            if found is not None:
                a, b, scale = found
                a, b = (t.to(execution_device(block), model.dtype) for t in (a, b))
                block.attention.draft = LowRank(a, b, scale)
        return replace(model, drafting=Adapted())

    def _module(self, layer: int) -> str:
        return self.names.of(f"blocks.{layer}.attention.out.weight").removesuffix(".weight")


def find_drafts(
    given: str | os.PathLike[str] | None,
    source: Source,
    checkpoint: Checkpoint,
    tensor_parallel: int | None = None,
) -> DraftAdapter | None:
    """Returns the adapter of a folder, of one inside a checkpoint's, or of a hub id.

    None where none is given. Raises CheckpointError where there is none at the place, or the model
    has one mode of attention, ValueError where its layers are cut up among processes.
    """
    if given is None:
        return None
    named, attention = os.fspath(given), checkpoint.spec.attention
    if tensor_parallel is not None:
        raise ValueError(
            f"draft_adapter={named!r} is of whole projections, of which tensor_parallel="
            f"{tensor_parallel} gives each process a part: leave one of them out"
        )
    if attention != "causal_context":
        raise CheckpointError(
            f"draft_adapter={named!r} is for models that draft what they then read causally, and "
            f"{checkpoint.name!r} has attention={attention!r}: leave it out, or merge it with "
            "adapter="
        )
    inside = checkpoint.folder / named
    if not Path(named).is_dir() and inside.is_dir():
        named = os.fspath(inside)
    where = replace(source, revision=None, subfolder="")
    try:
        folder = find_folder(named, where, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    except CheckpointError as error:
        raise CheckpointError(f"draft_adapter={named!r}: {error}") from error
    found = DraftAdapter(Adapter(folder), checkpoint.family.names)
    found.check(checkpoint.network)
    return found


def attaching(
    drafts: DraftAdapter | None, fill: Callable[[], HostedModel]
) -> Callable[[], HostedModel]:
    """Returns what fills a model with its weights, and with those that it drafts with."""
    return fill if drafts is None else lambda: drafts.attached(fill())
