"""What tokens spell: the path that a row of tokens and masks is, and the tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dllm.constraints.context_free.chart import ANY, SOME
from dllm.constraints.language import OPEN
from dllm.constraints.vocabulary import Ends, Spellings

_NO_MASK = -1


@dataclass(frozen=True)
class Path:
    """The text of a row up to its end: bytes, and gaps where masks are."""

    labels: list[int]
    columns: list[int]  # of each label the masked column that it stands for, or _NO_MASK
    tail: int  # the first column behind the path
    room: int | None  # masks from there on, which text or ends may fill; None: the text ends there
    loose: bool  # any bytes may stand before it, or none


@dataclass(frozen=True, eq=False)
class TokenTexts:
    """The tokens that may be written, and what they spell."""

    spellings: Spellings
    ends: Ends
    barred: frozenset[int]  # tokens that are in no row

    @cached_property
    def eos(self) -> tuple[int, ...]:
        """The tokens that may end a text."""
        return tuple(one for one in self.ends.eos_token_ids if one not in self.barred)

    @cached_property
    def ending(self) -> frozenset[int]:
        """Tokens that stand at a text's end and behind it."""
        pads = self.ends.pad_token_ids if self.eos else ()
        return frozenset(self.eos) | (frozenset(pads) - self.barred)

    @cached_property
    def _unspelled(self) -> frozenset[int]:
        special = {*self.ends.eos_token_ids, *self.ends.pad_token_ids}
        return self.barred | special

    @cached_property
    def by_text(self) -> dict[bytes, int]:
        """The first token of each text."""
        size = len(self.spellings.begins) - 1
        size = min(size, self.ends.vocab_size or size)
        found: dict[bytes, int] = {}
        for token in range(size):
            if token not in self._unspelled and (text := self.spellings.of(token)):
                found.setdefault(text, token)
        return found

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.by_text), default=0)

    @cached_property
    def own_bytes(self) -> list[int]:
        """The bytes that are tokens by themselves: letters, digits, other signs, all others."""
        alone = [byte for byte in range(256) if bytes([byte]) in self.by_text]
        return sorted(alone, key=_rank)

    def text_of(self, token: int) -> bytes:
        """Returns what a token spells, nothing of one that is in no text."""
        if token in self._unspelled or token >= len(self.spellings.begins) - 1:
            return b""
        return self.spellings.of(token)

    def path(self, tokens: Sequence[int], exact: bool = False) -> Path | None:
        """Returns the path of a row, None where no filling of its masks is a text and its end.

        A gap before other text is any text at all, or if `exact` of one byte a mask.
        """
        stop = next((at for at, one in enumerate(tokens) if one in self.ending), len(tokens))
        if any(one != OPEN and one not in self.ending for one in tokens[stop:]):
            return None
        run = 0
        while run < stop and tokens[stop - 1 - run] == OPEN:
            run += 1
        room: int | None = run if self.eos and run else None
        if stop < len(tokens) and tokens[stop] not in self.eos:  # padding, with an end before it
            if not run:
                return None
            room = run - 1
        tail = stop if room is None else stop - run
        return self._spelled(tokens[:tail], room, exact)

    def _spelled(self, tokens: Sequence[int], room: int | None, exact: bool) -> Path | None:
        """Returns the path of text and masks."""
        labels: list[int] = []
        columns: list[int] = []
        drops, begins_open = self.spellings.drops_space, bool(tokens) and tokens[0] == OPEN
        loose = drops and begins_open and not exact
        for column, token in enumerate(tokens):
            if token == OPEN:
                if not exact and ((labels and labels[-1] == SOME) or (loose and not labels)):
                    continue
                labels.append(ANY if exact else SOME)
                columns.append(column)
                continue
            text = self.text_of(token)
            if not text:
                return None
            if column == 0 and drops:
                text = text.removeprefix(b" ")
            labels += text
            columns += [_NO_MASK] * len(text)
        return Path(labels, columns, len(tokens), room, loose)

    def filled(self, tokens: Sequence[int], path: Path, text: bytes, tail: bytes) -> list[int]:
        """Returns a row with the masks of an exact path filled, and a text and ends behind it.

        `text` are the bytes of the path. Returns [] where the tokens do not suffice.
        """
        found = list(tokens)
        if self.spellings.drops_space and tokens[0] == OPEN and (text + tail)[:1] == b" ":
            return []  # it would be lost
        for column, byte in zip(path.columns, text, strict=True):
            if column != _NO_MASK:
                found[column] = self.by_text[bytes([byte])]
        behind = self._split(tail, path.room or 0)
        if behind is None:
            return []
        found[path.tail : path.tail + len(behind)] = behind
        for column in range(path.tail + len(behind), len(found)):
            if found[column] == OPEN:
                found[column] = self.eos[0]
        return found

    def _split(self, text: bytes, room: int) -> list[int] | None:
        """Returns the tokens of a text: one a byte, or as few as can be where there is no room."""
        if len(text) <= room:
            return [self.by_text[bytes([byte])] for byte in text]
        counts: list[int] = [0]
        lasts: list[int] = [0]  # where the last token of a text's beginning begins
        for stop in range(1, len(text) + 1):
            starts = range(max(0, stop - self.longest), stop)
            count, start = min(
                (counts[at] + 1, at) for at in starts if text[at:stop] in self.by_text
            )
            counts.append(count)
            lasts.append(start)
        if counts[-1] > room:
            return None
        found: list[int] = []
        stop = len(text)
        while stop:
            found.append(self.by_text[text[lasts[stop] : stop]])
            stop = lasts[stop]
        return found[::-1]


def _rank(byte: int) -> tuple[int, int]:
    text = bytes([byte])
    if text.isalnum():
        return (0 if text.islower() else 1), byte
    return (2 if 0x20 <= byte < 0x7F else 3), byte
