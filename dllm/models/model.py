"""The contracts of models and of their passes, and the hosted models that fulfil them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dllm.models.config import ModelSpec
from dllm.models.cost import Cost, network_cost
from dllm.models.layer_policies import FeatureReuse, partly_computed
from dllm.models.transformer import Transformer
from dllm.state.plan import LayerPolicy, StepPlan
from dllm.state.rounded_store import RoundedStore
from dllm.state.store import KVStore, StoreShape

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

Pass = Callable[[Tensor, StepPlan, KVStore | None], Tensor]  # what `Transformer` is


class Runner(Protocol):
    """Runs the passes of one network, with the results of the network itself."""

    reuses_features: bool  # also those of `FeatureReuse`, which goes layer by layer

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store."""
        ...

    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V)."""
        ...


class DenoisingModel(Protocol):
    """Anything the loop can denoise with: logits of the rows that a plan names."""

    @property
    def spec(self) -> ModelSpec:
        """Special tokens, limits, attention and alignment."""
        ...

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer, if it came with one."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Generation settings that the checkpoint recommends."""
        ...

    @property
    def supports_cache(self) -> bool:
        """Whether passes may feed a part of the canvas and read the rest from a K/V store."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the canvas lives."""
        ...

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        """Returns an empty K/V store for a canvas of that size."""
        ...

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V): the i-th of column `positions[logit_rows[i]] + logit_shift`.

        They are new ones: the caller may write into them.
        """
        ...


@dataclass(frozen=True)
class HostedModel:
    """A checkpoint of a known family on the project's own transformer."""

    name: str
    network: Transformer
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json
    supports_cache: bool = True
    revision: str | None = None  # commit of the hub's repository; None for a folder
    recipe: Mapping[str, Any] | None = None  # recipe.json of its folder, for `generate(recipe=)`
    runner: Runner | None = None  # runs the network's passes (`dllm.speed_up`); None: itself
    rounds_keys: bool = False  # the K/V store holds 8 bits
    drafting: LayerPolicy | None = None  # of passes that draft, where an adapter is for them alone

    @property
    def device(self) -> torch.device:
        return execution_device(self.network.embedding)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the K/V store."""
        return self.network.embedding.weight.dtype

    @property
    def cost(self) -> Cost:
        """What the network spends on a pass."""
        return network_cost(self.network.config, self.dtype.itemsize, self.rounds_keys)

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        config = self.network.config
        shape = StoreShape(num_rows, num_columns, config.num_kv_heads, config.head_dim)
        devices = [execution_device(layer) for layer in self.network.layers]
        if self.rounds_keys:
            return RoundedStore(shape, self.dtype, devices)
        new = KVStore if self.runner is None else self.runner.new_store
        return new(shape, self.dtype, devices)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        whole = self.runner is not None and self.runner.reuses_features
        if store is not None and isinstance(plan.policy, FeatureReuse) and not whole:
            return partly_computed(self.network, tokens, plan, store)
        run = self.network if self.runner is None else self.runner
        logits: Tensor = run(tokens, plan, store)
        return logits


def check_rounded(model: DenoisingModel, cache: str, stores: bool) -> None:
    """Raises ValueError for a cache that stores nothing, of a model that rounds what is stored."""
    if getattr(model, "rounds_keys", False) and not stores:
        raise ValueError(
            f"cache {cache!r} stores nothing that 'kv_int8' of {model.name!r} could round: take "
            "another, such as 'dual', or load the model without 'kv_int8'"
        )


def is_plain(plan: StepPlan, store: KVStore | None) -> bool:
    """Whether a pass is no more than its tensors: nothing is noted, chosen or moved beside K/V."""
    plain = plan.policy is None and plan.places is None
    return plain and (store is None or store.stamp is None)


def execution_device(module: nn.Module) -> torch.device:
    """Returns where a module computes, which accelerate's offloading parts from its weights."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for inner in (hook, *getattr(hook, "hooks", ())):
            device = getattr(inner, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device
