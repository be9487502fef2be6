"""Lists of names as text: written in one form, read in many."""

from __future__ import annotations

from collections.abc import Sequence

_AROUND = " \t\r\n\"'`*\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"


def write_list(items: Sequence[str]) -> str:
    """Returns the one form of a list: `[a, b, c]`."""
    return f"[{', '.join(items)}]"


def read_list(text: str) -> tuple[str, ...] | None:
    """Returns the items between the last `[` and the first `]` after it, None without both.

    Spaces, line ends, quotes and marks of emphasis around an item are no part of it. An item may
    be empty: `[a,]` has two, `[]` none.
    """
    _, opened, after = text.rpartition("[")
    inside, closed, _ = after.partition("]")
    if not (opened and closed):
        return None
    return tuple(item.strip(_AROUND) for item in inside.split(",")) if inside.strip() else ()
