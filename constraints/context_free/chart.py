"""Whether some text of a network goes along a path of bytes and gaps, and the shortest that does.

The intersection of a grammar and a regular language is empty or it is not (arXiv 2508.10111), and
its symbols are triples: a rule that leads from one place of the path to another. They are found
by a worklist and never listed beforehand; of all triples only those are looked at that a text from
the path's beginning may have (Earley), so that the places before a change keep what they have.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.constraints.context_free.costs import Costs
from dllm.constraints.context_free.network import NONE, ROOT, Network

# Labels of a path beside the bytes.
ANY = 256  # one byte
SOME = 257  # one byte or more

Item = tuple[int, int]  # a position, and the place at which its rule began
# How an item was found: nothing, the item before a byte, or the item before a rule and that rule's.
Origin = None | tuple[Item, int] | tuple[Item, int, Item]


class TooMuchWorkError(RuntimeError):
    """A question that takes more items than are allowed: it stays undecided."""


class _Place:
    """The items at a place of the path."""

    __slots__ = ("moving", "origins", "waiting")

    def __init__(self) -> None:
        self.origins: dict[Item, Origin] = {}
        self.waiting: dict[int, list[Item]] = {}  # by the rule that they expect
        self.moving: list[Item] = []  # those of terminals


@dataclass(frozen=True)
class Ending:
    """The shortest text behind a path, and the derivation that it belongs to."""

    text: bytes
    items: tuple[tuple[Item, int], ...]  # with their places: what is before them on the path


class Chart:
    """The items of a path, from left to right; what two paths begin with is kept between them."""

    def __init__(self, network: Network, wild: list[dict[int, int]], most: int) -> None:
        self.network = network
        self._wild = wild  # for each position the next ones by any byte, and such a byte
        self._most = most  # items of a path
        self._labels: list[int] = []
        self._places: list[_Place] = []
        self._loose = False

    def read(self, labels: Sequence[int], loose: bool = False) -> None:
        """Takes a path; `loose` lets any bytes stand before it. Raises TooMuchWorkError."""
        if loose != self._loose or not self._places:
            self._labels, self._places, self._loose = [], [], loose
        same = 0
        for old, new in zip(self._labels, labels, strict=False):
            if old != new:
                break
            same += 1
        del self._labels[same:], self._places[same + 1 :]
        if not self._places:
            self._close([((self.network.first, 0), None)], loose)
        for label in labels[same:]:
            self._close(self._scanned(label), label == SOME)
            self._labels.append(label)

    @property
    def accepted(self) -> bool:
        """Whether the path is all of some text."""
        return (self.network.last, 0) in self._places[-1].origins

    def whole(self) -> Ending | None:
        """Returns the derivation of a text that the path is all of."""
        end = ((self.network.last, 0), len(self._places) - 1)
        return Ending(b"", (end,)) if self.accepted else None

    def least(self, costs: Costs) -> Ending | None:
        """Returns the shortest text that may follow the path, None where none does.

        By Dijkstra's algorithm from the rules that the path's end is in to that of whole texts.
        """
        here = len(self._places) - 1
        waiting: list[tuple[float, int, int, Item, int, int]] = []
        for at, origin in self._places[here].origins:
            if (rest := costs.rest[at]) < math.inf:
                waiting.append((rest, self.network.rule_of[at], origin, (at, origin), here, NONE))
        heapq.heapify(waiting)
        done: list[tuple[float, int, int, Item, int, int]] = []
        seen = set()
        while waiting:
            cost, rule, origin, *_ = one = heapq.heappop(waiting)
            if (rule, origin) in seen:
                continue
            seen.add((rule, origin))
            done.append(one)
            if rule == ROOT:
                return self._ending(done, costs)
            for at, began in self._places[origin].waiting.get(rule, ()):
                if (rest := costs.rest[self.network.after[at]]) < math.inf:
                    outer = self.network.rule_of[at]
                    item = (cost + rest, outer, began, (at, began), origin, len(done) - 1)
                    heapq.heappush(waiting, item)
        return None

    def spelled(self, ending: Ending) -> bytes:
        """Returns the bytes of a derivation along the path, which holds no SOME."""
        found, stack = list(self._labels), list(ending.items)
        while stack:
            item, place = stack.pop()
            origin = self._places[place].origins[item]
            if origin is None:
                continue
            before, at = origin[0], origin[1]
            stack.append((before, at))
            if len(origin) == 3:
                stack.append((origin[2], place))
            elif found[at] == ANY:
                found[at] = self._wild[before[0]][item[0]]
        return bytes(found)

    def _ending(self, done: list[tuple[float, int, int, Item, int, int]], costs: Costs) -> Ending:
        """Returns what leads from the path's end to the last one found."""
        texts, items, number = [], [], len(done) - 1
        while number != NONE:
            *_, item, place, inner = done[number]
            items.append((item, place))
            texts.append(costs.text(item[0] if inner == NONE else self.network.after[item[0]]))
            number = inner
        return Ending(b"".join(reversed(texts)), tuple(items))

    def _scanned(self, label: int) -> list[tuple[Item, Origin]]:
        """Returns the items behind the last place after a byte, or any."""
        place, found = len(self._places) - 1, []
        for item in self._places[place].moving:
            row = self.network.moves[item[0]]
            if label >= ANY:
                found += [((to, item[1]), (item, place)) for to in self._wild[item[0]]]
            elif row is not None and row[label] != NONE:
                found.append(((row[label], item[1]), (item, place)))
        return found  # type: ignore[return-value]

    def _close(self, work: list[tuple[Item, Origin]], loops: bool) -> None:
        """Adds a place with all that follows from some items."""
        network, place, here = self.network, _Place(), len(self._places)
        # Of all places, so that no answer depends on what was read before.
        left = self._most - sum(len(one.origins) for one in self._places)
        ended: dict[tuple[int, int], Item] = {}  # rules that end here, and where they began
        while work:
            item, origin = work.pop()
            if item in place.origins:
                continue
            place.origins[item] = origin
            if len(place.origins) > left:
                raise TooMuchWorkError(f"more than {self._most} items")
            at, began = item
            rule = network.rule_of[at]
            if network.finishes[at] and (rule, began) not in ended:
                ended[rule, began] = item
                source = place if began == here else self._places[began]
                for before in source.waiting.get(rule, ()):
                    work.append(((network.after[before[0]], before[1]), (before, began, item)))
            if network.moves[at] is not None:
                place.moving.append(item)
                if loops:
                    work += [((to, began), (item, here)) for to in self._wild[at]]
            elif network.expects[at] != NONE:
                work += self._expected(item, place, ended)
        self._places.append(place)

    def _expected(
        self, item: Item, place: _Place, ended: dict[tuple[int, int], Item]
    ) -> list[tuple[Item, Origin]]:
        """Notes the rule that an item of a new place waits for; returns what follows from that."""
        network, here, (at, began) = self.network, len(self._places), item
        wanted = network.expects[at]
        found: list[tuple[Item, Origin]] = []
        if wanted not in place.waiting:
            place.waiting[wanted] = []
            found += [((begin, here), None) for begin in network.begins[wanted]]
        place.waiting[wanted].append(item)
        if inner := ended.get((wanted, here)):
            found.append(((network.after[at], began), (item, here, inner)))
        return found
