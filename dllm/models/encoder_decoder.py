"""Two stacks, of which one reads what is committed and the other fills the open block (E2D2)."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from dllm.models.config import DecoderConfig, NetworkConfig
from dllm.models.layers import Block, Fed, Memory, RMSNorm, rows_of
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape


class EncoderDecoder(Transformer):
    """An encoder of tokens, `blocks`, and a decoder of open blocks, which has the logits.

    Of the columns that a pass feeds, the first ones, whose keys it stores, go through the encoder;
    it leaves keys and values for both stacks. The others go through the decoder, whose layers see
    those and one another. Without a store, a pass fills one of its own.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        if not self._decoder.shared:
            count = self._decoder.num_layers
            self.decoder_blocks = nn.ModuleList(Block(config, layer) for layer in range(count))
            width = config.hidden_size, config.rms_norm_eps, config.norm_multiply_first
            self.decoder_norm = RMSNorm(*width)

    @property
    def _decoder(self) -> DecoderConfig:
        assert self.config.decoder is not None
        return self.config.decoder

    @property
    def layers(self) -> list[nn.Module]:
        own = [] if self._decoder.shared else [*self.decoder_blocks]
        return [*self.blocks, *own]

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        plan: StepPlan | None = None,
        store: KVStore | None = None,
    ) -> Tensor:
        """Returns the decoder's normed states of the columns that `plan.logit_rows` names.

        Without a plan all columns are one open block, behind nothing.
        """
        if plan is None:
            every = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            plan = StepPlan("step", positions, every, 0, mask, stored=every[:, :0])
        assert plan.stored is not None, "a pass says which columns are encoded"
        store = self._own_store(plan) if store is None else store
        slots, count = store.begin(plan.stored), plan.stored.shape[1]
        mask, rotation = plan.attention_mask, self.rotation(positions)
        encoded = None if mask is None else mask[:, :count, : plan.num_keys]
        decoded = None if mask is None else mask[:, count:]
        if count:
            fed = Fed(rotation.of_columns(0, count), encoded)
            self._encode(tokens[:, :count], fed, plan, store, slots)
        fed = Fed(rotation.of_columns(count, tokens.shape[1]), decoded)
        return self._decode(tokens[:, count:], fed, plan, store, plan.logit_rows - count)

    def _encode(
        self, tokens: Tensor, fed: Fed, plan: StepPlan, store: KVStore, slots: Tensor
    ) -> None:
        """Stores the keys and values of tokens (B, q), for both stacks."""
        layers, x = self.layers, self.embedding(tokens)
        memories = [Memory(store, layer, plan, slots) for layer in range(len(layers))]
        # Of a shared stack nobody reads what follows the last keys.
        whole = len(self.blocks) - self._decoder.shared
        for layer, block in enumerate(layers):
            if layer == len(self.blocks):
                x = self.norm(x)
            if layer < whole:
                x = block(x, fed, memories[layer])
            else:
                cast("Block", block).remember(x, fed, memories[layer])

    def _decode(
        self, tokens: Tensor, fed: Fed, plan: StepPlan, store: KVStore, wanted: Tensor
    ) -> Tensor:
        """Returns states (B, w, hidden_size) of open columns `wanted` (B, w) of tokens (B, n)."""
        layers, nowhere = self.layers, wanted[:, :0]  # no key of an open block is kept
        x, narrows = self.embedding(tokens), wanted.shape[1] < tokens.shape[1]
        for layer in range(len(layers) - self._decoder.num_layers, len(layers)):
            if narrows and layer == len(layers) - 1:
                fed = replace(fed, wanted=wanted)
            x = layers[layer](x, fed, Memory(store, layer, plan, nowhere))
        x = x if narrows else rows_of(x, wanted.to(x.device))
        return self.norm(x) if self._decoder.shared else self.decoder_norm(x)

    @property
    def _num_kv_heads(self) -> int:
        # Of the layers, not of the configuration: of a network over ranks each has some.
        return int(cast("Block", self.blocks[0]).attention.kv_width) // self.config.head_dim

    def _own_store(self, plan: StepPlan) -> KVStore:
        config, weight = self.config, self.embedding.weight
        size = (len(plan.positions), plan.num_keys, self._num_kv_heads, config.head_dim)
        devices = [next(layer.parameters()).device for layer in self.layers]
        return KVStore(StoreShape(*size), weight.dtype, devices)
