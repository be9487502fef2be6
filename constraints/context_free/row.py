"""A row that must be a text of a grammar: whether its masks can be filled, and with which tokens.

Two answers, since neither suffices alone. `completable` takes a gap before other text for any text
(arXiv 2508.10111): it never says no where there is a filling, and may say yes where the number of
masks does not go with any. `complete` finds fillings of exactly that number, of tokens of one byte
in gaps, and the shortest text behind them: each is right, and there may be others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dllm.constraints.context_free.chart import Chart, TooMuchWorkError
from dllm.constraints.context_free.costs import Costs, costs_of
from dllm.constraints.context_free.network import Network
from dllm.constraints.context_free.spelling import TokenTexts

MOST_ITEMS = 200_000  # of a question; about half a second


@dataclass(frozen=True, eq=False)
class FreeLanguage:
    """A grammar over the tokens of a model: what all rows that are held to it share."""

    network: Network
    texts: TokenTexts

    @cached_property
    def costs(self) -> Costs:
        """The shortest texts over all bytes."""
        return costs_of(self.network)

    @cached_property
    def own_costs(self) -> Costs:
        """The shortest texts over bytes that are tokens by themselves."""
        return costs_of(self.network, self.texts.own_bytes)

    @cached_property
    def steps(self) -> list[dict[int, int]]:
        """The next positions by any byte."""
        return self.network.steps()

    @cached_property
    def own_steps(self) -> list[dict[int, int]]:
        """The next positions by bytes that are tokens by themselves."""
        return self.network.steps(self.texts.own_bytes)

    @cached_property
    def shortest(self) -> int | None:
        """Bytes of the shortest text that tokens of one byte spell, None where there is none."""
        length = self.own_costs.rest[self.network.first]
        return None if length == math.inf else int(length)


class FreeRow:
    """The questions about one row, and the charts of those asked last."""

    def __init__(self, language: FreeLanguage, most_items: int = MOST_ITEMS) -> None:
        self.language, self.texts = language, language.texts
        self._chart = Chart(language.network, language.steps, most_items)
        self._exact_chart = Chart(language.network, language.own_steps, most_items)

    def completable(self, tokens: Sequence[int]) -> bool | None:
        """Returns whether the masks of a row, OPEN in it, may be filled; None: it takes too long.

        What is True of a row with gaps before other text may be too much or too little text for
        its masks; of a row without, and where it is False, the answer is exact.
        """
        path = self.texts.path(tokens)
        if path is None:
            return False
        try:
            self._chart.read(path.labels, path.loose)
        except TooMuchWorkError:
            return None
        if path.room is None:
            return self._chart.accepted
        ending = self._chart.least(self.language.costs)
        return ending is not None and len(ending.text) <= path.room * self.texts.longest

    def complete(self, tokens: Sequence[int]) -> list[int] | None:
        """Returns a row whose masks are filled to a text and its end, None where none was found."""
        path = self.texts.path(tokens, exact=True)
        if path is None:
            return None
        chart = self._exact_chart
        try:
            chart.read(path.labels)
        except TooMuchWorkError:
            return None
        ending = chart.whole() if path.room is None else chart.least(self.language.own_costs)
        if ending is None:
            return None
        return self.texts.filled(tokens, path, chart.spelled(ending), ending.text) or None
