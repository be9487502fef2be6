"""The error of everything that can be wrong with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable


def first_few(lines: Iterable[str], limit: int = 5) -> str:
    """Returns the first lines for a message, and how many more there are."""
    lines = list(lines)
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "; ".join(lines[:limit] + more)
