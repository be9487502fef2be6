"""`Regex`: what Python's `re.fullmatch` accepts, as an exact automaton over the bytes of UTF-8.

Patterns are read by Python's own parser, so that they mean what `re` says and an invalid one is
refused with its position; the automaton is made here, within bounds. `outlines-core` reads Rust's
dialect, gives no position, and knows no bound: `(a|b)*a.{12}` takes it 3 s and 500 MB, for states
that it does not merge. `interegular` works on characters and has no bound either.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dllm.constraints.automaton import ByteAutomaton
from dllm.constraints.base import Constraint
from dllm.constraints.regular.determinise import automaton_of
from dllm.constraints.regular.expression import (
    ANY,
    EMPTY,
    LAST,
    NOTHING,
    Both,
    Either,
    Expression,
    Ranges,
    Repeated,
    Sequence,
    Without,
    besides,
    characters,
    common,
)

# Public as `sre_parse` until Python 3.10.
_PARSER: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_NO_LANGUAGE = {
    "ASSERT": "look-around, (?=...) or (?<=...), inside a part that is not at the edge",
    "ASSERT_NOT": "look-around, (?!...) or (?<!...), inside a part that is not at the edge",
    "GROUPREF": "a back reference",
    "GROUPREF_IGNORE": "a back reference",
    "GROUPREF_EXISTS": "a conditional group, (?(1)...)",
    "ATOMIC_GROUP": "an atomic group, (?>...)",
    "POSSESSIVE_REPEAT": "a possessive repetition, such as a*+",
}
_BEGINNINGS = ("AT_BEGINNING", "AT_BEGINNING_STRING")
_ENDS = ("AT_END", "AT_END_STRING")


@dataclass(frozen=True)
class Regex(Constraint):
    r"""The texts that `re.fullmatch(pattern, text)` of Python accepts.

    As there, `.` is any character but a newline, and `\d`, `\w` and `\s` are those of Unicode;
    the flags i, s, a and x can be set inside the pattern, as in `(?a)\w+`. Lazy repetitions accept
    what greedy ones accept. Look-ahead up to the end of the text and look-behind from its beginning
    are followed, as in `"(.*)(?<!x)"`. Raises ValueError for an invalid pattern, with position and
    reason, and by name for look-around inside repetitions, back references, conditional and atomic
    groups, possessive repetitions, word boundaries, and ^ or $ inside a pattern.
    """

    pattern: str
    _expression: Expression = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise TypeError(f"pattern={self.pattern!r} must be a string")
        object.__setattr__(self, "_expression", expression_of(self.pattern))

    @property
    def source(self) -> str:
        return self.pattern

    def build(self) -> ByteAutomaton:
        return automaton_of(self._expression)


@dataclass(frozen=True)
class Reading:
    """How a pattern is meant."""

    search: bool = False  # somewhere in the text, as `re.search`, instead of all of it
    # Only what all dialects accept: they differ in whether \d and \w are those of ASCII or of
    # Unicode, and in what the dot is.
    strict: bool = False


def expression_of(pattern: str, reading: Reading | None = None) -> Expression:
    """Returns the texts that a pattern of Python's `re` accepts.

    Raises ValueError that says why a pattern is none, or has no language of this kind.
    """
    try:
        tree = _PARSER.parse(pattern)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos}"
        raise ValueError(f"regex {_shown(pattern)} is invalid{where}: {error.msg}") from None
    except (RecursionError, OverflowError) as error:
        why = "groups are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"regex {_shown(pattern)} is invalid: {why}") from None
    reader = _Reader(reading or Reading())
    try:
        return reader.sequence(list(tree), tree.state.flags, (True, True))
    except RecursionError:
        raise ValueError(f"regex {_shown(pattern)}: groups are nested too deeply") from None
    except _NoLanguageError as error:
        raise ValueError(f"regex {_shown(pattern)} has {error}, which is not supported") from None


class _NoLanguageError(Exception):
    """A part of a pattern that says more than which texts there are."""


Edges = tuple[bool, bool]  # whether a part begins and ends the whole text


class _Reader:
    """From the trees of Python's parser to expressions."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def sequence(self, nodes: list[Any], flags: int, edges: Edges) -> Expression:
        """Returns the texts of nodes one after the other."""
        parts: list[Expression] = []
        ahead: list[tuple[int, Any]] = []  # before which part, and what is looked at
        # In a search anything stands around the text, where no part at that edge sees to it itself.
        if self.reading.search and edges[0] and not (nodes and _sees_to(nodes[0], _BEGINNINGS)):
            parts.append(Repeated(ANY))
        for number, node in enumerate(nodes):
            if str(node[0]) not in ("ASSERT", "ASSERT_NOT"):
                first = edges[0] and number == 0
                last = edges[1] and number == len(nodes) - 1
                parts.append(self.node(node, flags, (first, last)))
            elif node[1][0] > 0 and edges[1]:
                ahead.append((len(parts), node))
            elif node[1][0] < 0 and edges[0] and not any(place for place, _ in ahead):
                parts = [self.looked(node, flags, Sequence(tuple(parts)))]
            else:
                raise _NoLanguageError(_NO_LANGUAGE[str(node[0])])
        if self.reading.search and edges[1] and not (nodes and _sees_to(nodes[-1], _ENDS)):
            parts.append(Repeated(ANY))
        for place, node in reversed(ahead):
            parts[place:] = [self.looked(node, flags, Sequence(tuple(parts[place:])))]
        return Sequence(tuple(parts))

    def looked(self, node: Any, flags: int, side: Expression) -> Expression:
        """Returns the texts on one side of a look-around, up to the edge of the text, that suit."""
        direction, nodes = node[1]
        seen = self.sequence(list(nodes), flags, (False, False))
        whole = (Repeated(ANY), seen) if direction < 0 else (seen, Repeated(ANY))
        return (Both if str(node[0]) == "ASSERT" else Without)(side, Sequence(whole))

    def node(self, node: Any, flags: int, edges: Edges) -> Expression:
        """Returns the texts of one node of the tree."""
        kind, value = str(node[0]), node[1]
        if kind in ("LITERAL", "NOT_LITERAL", "IN", "ANY"):
            return self.characters(kind, value, flags)
        if kind == "SUBPATTERN":
            _, added, removed, inside = value
            return self.sequence(list(inside), (flags | added) & ~removed, edges)
        if kind == "BRANCH":
            return Either(tuple(self.sequence(list(b), flags, edges) for b in value[1]))
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inside = value
            part = self.sequence(list(inside), flags, (False, False))
            unbounded = most == _PARSER.MAXREPEAT
            return Repeated(part, int(least), None if unbounded else int(most))
        if kind == "FAILURE":  # (?!)
            return NOTHING
        if kind == "AT":
            return self.anchor(str(value), flags, edges)
        raise _NoLanguageError(_NO_LANGUAGE.get(kind, kind))

    def anchor(self, name: str, flags: int, edges: Edges) -> Expression:
        """Returns the empty text for ^ and $ at the edges of the text; they say nothing there."""
        many = bool(flags & re.MULTILINE) and self.reading.search
        if not many and ((name in _BEGINNINGS and edges[0]) or (name in _ENDS and edges[1])):
            return EMPTY
        if name in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            raise _NoLanguageError(r"a word boundary, \b or \B")
        raise _NoLanguageError("^ or $ elsewhere than at the beginning and the end")

    def characters(self, kind: str, value: Any, flags: int) -> Expression:
        """Returns the characters of a literal, a dot or a class."""
        if kind == "ANY" and not flags & re.DOTALL:
            # JavaScript knows four ends of a line.
            ends = (0x0A, 0x0D, 0x2028, 0x2029) if self.reading.strict else (0x0A,)
            return besides((end, end) for end in ends)
        if kind == "ANY":
            return ANY
        items = list(value) if kind == "IN" else [("LITERAL", value)]
        negated = kind == "NOT_LITERAL" or str(items[0][0]) == "NEGATE"
        items = [item for item in items if str(item[0]) != "NEGATE"]
        plain = all(str(name) != "CATEGORY" for name, _ in items)
        if plain and not flags & re.IGNORECASE:
            ranges = [(low, low) if isinstance(low, int) else low for _, low in items]
            return besides(ranges) if negated else characters(ranges)
        text = f"[{'^' if negated else ''}{''.join(map(_class_item, items))}]"
        kept = flags & (re.IGNORECASE | re.ASCII)
        found = _matching(text, kept)
        if self.reading.strict:
            return common(found, _matching(text, kept ^ re.ASCII))
        return characters(found)


def _sees_to(node: Any, anchors: tuple[str, ...]) -> bool:
    """Whether a node at an edge is an anchor, or puts anything there itself, branch by branch."""
    return str(node[0]) in ("SUBPATTERN", "BRANCH") or str(node[1]) in anchors


def _class_item(item: Any) -> str:
    kind, value = str(item[0]), item[1]
    if kind == "CATEGORY":
        return _CATEGORIES[str(value)]
    low, high = (value, value) if kind == "LITERAL" else value
    return f"\\U{low:08x}-\\U{high:08x}"


@lru_cache(maxsize=256)
def _matching(text: str, flags: int) -> Ranges:
    """Returns the characters that a class of `re` matches, by asking `re`.

    What Unicode calls a digit, and which letters are one but for case, then is what it is there.
    """
    runs = re.compile(f"(?:{text})+", flags).finditer(_all_characters())
    return tuple((run.start(), run.end() - 1) for run in runs)


@lru_cache(maxsize=1)
def _all_characters() -> str:
    return "".join(map(chr, range(LAST + 1)))


def _shown(pattern: str) -> str:
    text = repr(pattern)
    return text if len(text) <= 80 else text[:60] + f"... ({len(pattern)} characters)"
