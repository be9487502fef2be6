"""How often a corpus has each token: the table that `pc_sampler` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm.reading import parse_json

_COUNTS, _TOTAL = "p_baseline_dict", "num_token"  # as in the authors' files
_MOST = 2**22  # token ids: no vocabulary is as large, and a table of them takes 16 MiB
_FORM = f'{{"{_TOTAL}": 12, "{_COUNTS}": {{"TOKEN ID": 12}}}}'


@dataclass(frozen=True)
class Frequencies:
    """Counts of token ids in a corpus; a token that it does not have counts as one."""

    counts: Mapping[int, int]
    total: int
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def last(self) -> int:
        """The largest token id."""
        return max(self.counts)

    def of(self, tokens: Tensor) -> Tensor:
        """Returns the share of the corpus that each of some tokens (...) has, float32."""
        table = self._on(tokens.device)
        return table[tokens.clamp(max=len(table) - 1)]

    def _on(self, device: torch.device) -> Tensor:
        """Returns the share of each token id, and at the end that of all others, on a device."""
        if device not in self._placed:
            table = torch.full((self.last + 2,), 1 / self.total, dtype=torch.float64)
            table[list(self.counts)] = (
                torch.tensor(list(self.counts.values())).double() / self.total
            )
            self._placed[device] = table.float().to(device)
        return self._placed[device]

    def write(self, path: Path) -> None:
        """Writes a file that `read_frequencies` reads, and the authors' code."""
        counts = {str(token): count for token, count in sorted(self.counts.items())}
        path.write_text(json.dumps({_TOTAL: self.total, _COUNTS: counts}) + "\n", encoding="utf-8")


def count_tokens(texts: Iterable[list[int]]) -> Frequencies:
    """Returns the counts of token ids in some texts; raises ValueError where there are none."""
    counts: dict[int, int] = {}
    for tokens in texts:
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
    if not counts:
        raise ValueError("the texts have no tokens, so there is nothing to count: name other files")
    return Frequencies(counts, sum(counts.values()))


@lru_cache(maxsize=8)
def read_frequencies(path: str) -> Frequencies:
    """Returns the table of a file; raises ValueError that says what is wrong with it."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"frequencies={path!r} cannot be read ({error}): `dllm background-frequency` makes "
            "such a file"
        ) from None
    try:
        value = parse_json(text, path)
    except ValueError as error:
        raise ValueError(f"frequencies={path!r} is no JSON: {error}") from None
    counts = value.get(_COUNTS) if isinstance(value, dict) else None
    if not isinstance(counts, dict) or not counts or not _is_count(value.get(_TOTAL)):
        raise ValueError(f"{path} is no table of frequencies: it must look like {_FORM}")
    wrong = next((k for k, v in counts.items() if not k.isdecimal() or not _is_count(v)), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: {_COUNTS} has {wrong!r}: {counts[wrong]!r}, where token ids and counts above "
            "0 belong"
        )
    if (largest := max(map(int, counts))) >= _MOST:
        raise ValueError(f"{path}: {_COUNTS} has token {largest}; ids are below {_MOST}")
    return Frequencies({int(token): count for token, count in counts.items()}, value[_TOTAL])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
