"""How wide the rows of a canvas are, and how they are cut into blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """What every row of a canvas shares: its width and how it is cut into blocks."""

    num_rows: int
    num_columns: int  # L: the longest row
    block_length: int
    mask_token_id: int
    fill_token_id: int  # ends a finished row
    eos_token_ids: tuple[int, ...]
    # Tokens of each prompt with its slots, those included that enter the canvas later.
    lengths: tuple[int, ...]
    num_slots: int  # the most of any row
    window_length: int  # columns from a block's start that a step may commit
    region_length: int = 0  # columns of the whole generated region, if a scheduler sees it all
    num_shadows: int = 0  # store slots for columns that are fed twice
    can_shorten: bool = False  # a scheduler may cut rows off
    whole_block: bool = False  # a scheduler reads the logits of committed columns of the block

    @property
    def ragged(self) -> bool:
        """Whether rows differ in length, so that attention needs a key mask."""
        return self.can_shorten or len(set(self.lengths)) > 1

    @property
    def width(self) -> int:
        """W: the columns that a step looks at."""
        return self.region_length or self.window_length

    @property
    def num_stored(self) -> int:
        """C: columns of the canvas, with spare ones in which any window ends."""
        return self.num_columns + max(self.width, self.window_length) + self.num_shadows
