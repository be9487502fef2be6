"""One row run layer by layer over columns that somebody chooses, as caches of features do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Forward = Callable[
    [Tensor, int], Tensor
]  # logits (T, V) of a row (T,), and its last column written


class FeatureRow:
    """What a row has of each layer: keys, values, what attention and feed-forward gave."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.held: list[dict[str, Tensor]] = [{} for _ in network.blocks]

    def normed(self, layer: int, x: Tensor) -> Tensor:
        """Returns the states (T, d) that a layer's attention reads."""
        states: Tensor = self.network.blocks[layer].attention_norm(x)
        return states

    def values(self, layer: int, x: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns the values of some columns as they are stored and as they would be, (n, k)."""
        new = self.network.blocks[layer].attention.project(self.normed(layer, x)[None])[2][0]
        at = list(columns)
        return self.held[layer]["values"][at].flatten(1), new[at].flatten(1)

    def run(
        self, layer: int, x: Tensor, computed: Sequence[int], keys: Any = (), values: Any = ()
    ) -> Tensor:
        """Returns the next states (T, d) from those before a layer that computes some columns.

        Of the columns in `keys` and `values` these are new besides.
        """
        block, held, at = self.network.blocks[layer], self.held[layer], list(computed)
        attention = block.attention
        q, k, v = attention.project(self.normed(layer, x)[None])
        rotation = self.network.rotation(torch.arange(len(x))[None])
        q, k = attention.rotate(q, rotation), attention.rotate(k, rotation)
        for name, new, more in (("keys", k[0], keys), ("values", v[0], values)):
            columns = [*at, *more]
            held.setdefault(name, torch.zeros_like(new))[columns] = new[columns]
        keys_, values_ = (held[name][None].transpose(1, 2) for name in ("keys", "values"))
        shared = q.shape[2] > k.shape[2]
        queries = q[:, at].transpose(1, 2)
        mixed = F.scaled_dot_product_attention(queries, keys_, values_, enable_gqa=shared)
        held.setdefault("mixed", torch.zeros_like(x))[at] = attention.out(
            mixed.transpose(1, 2).flatten(2)
        )[0]
        x = x + held["mixed"]
        given = block.feed_forward(block.feed_forward_norm(x[at][None]))[0]
        held.setdefault("given", torch.zeros_like(x))[at] = given
        return x + held["given"]

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits (T, V) of the last layer's states (T, d)."""
        logits: Tensor = self.network.logits(self.network.norm(x[None]))[0]
        return logits


@torch.inference_mode()
def decoded(
    model: Any, prompt: list[int], sizes: tuple[int, int], threshold: float, forward: Forward
) -> tuple[list[int], list[int], int]:
    """Returns a row's tokens, the pass that wrote each of its slots, and the passes.

    By a plain threshold, in slots and blocks of `sizes`; `forward` runs a pass.
    """
    mask, start, (slots, block) = model.spec.mask_token_id, len(prompt), sizes
    row, when = torch.tensor([*prompt, *[mask] * slots]), [-1] * slots
    passes, last = 0, start - 1
    for end in range(block, slots + 1, block):
        while mask in row[start + end - block : start + end]:
            logits = forward(row, last)
            if model.spec.logit_shift:
                logits = torch.cat([logits[:1], logits[:-1]])
            sure = logits.softmax(-1)
            token = logits.index_fill(1, torch.tensor([mask]), -torch.inf).argmax(-1)
            sure = sure.gather(1, token[:, None])[:, 0]
            open_ = [at for at in range(start, start + end) if row[at] == mask]
            best = max(open_, key=lambda at: float(sure[at]))
            chosen = [at for at in open_ if sure[at] >= threshold or at == best]
            for at in chosen:
                row[at], when[at - start] = token[at], passes
            last, passes = max(chosen), passes + 1
    return row.tolist(), when, passes
