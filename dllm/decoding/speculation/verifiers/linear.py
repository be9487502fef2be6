"""Linear self-speculation: the model fills a block both ways, then reads it causally."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dllm.decoding.speculation.verifiers import Verifier
from dllm.options import Probability, Rows


@dataclass(frozen=True)
class Linear(Verifier):
    """Keeps what a causal pass over a drafted block predicts itself, and one token more.

    For models that were trained in both modes (Nemotron-Labs-Diffusion). A row's last token and
    masks behind it are filled by a pass in which the block sees all of itself; a causal pass over
    the filled block then predicts the token behind each of its columns. Those up to the first that
    the draft did not have are kept. So tokens are those of decoding one token a causal pass,
    whatever was drafted: there is no scheduler in it, and only 'none' and 'block_causal' go beside
    it. At a temperature they are drawn as that decoding draws them.
    """

    block: Rows = 32  # columns of a pass: the last token, and those drafted behind it
    # Columns of a row's first draft; the next has twice as many where all were right, up to
    # `block`, and half as many, down to `grow`, where half of them at most were. None: `block`.
    grow: Rows | None = None
    # Passes fill masks of this probability, and the surest, until none is left; 0: all in one pass.
    threshold: Probability = 0.0

    source: ClassVar[str] = "NVIDIA's Nemotron-Labs-Diffusion, linear_spec_generate; mlx-vlm"
    base: ClassVar[Mapping[str, Any]] = {
        "block_length": 1,
        "cache": {"name": "block_causal", "first_token": "force"},
    }

    def __post_init__(self) -> None:
        if self.grow is not None and self.grow > self.block:
            raise ValueError(
                f"grow={self.grow} is the first of the windows up to block={self.block}: give less"
            )

    @property
    def num_variants(self) -> int:
        return 1

    @property
    def most_steps(self) -> int:
        return self.block

    @property
    def own_block(self) -> int:
        return self.block

    @property
    def first_window(self) -> int:
        """The columns of a row's first draft, its last token among them."""
        return self.block if self.grow is None else self.grow
