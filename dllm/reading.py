"""The one reader of YAML and the one of JSON: what has two meanings, or no end, is refused.

Python keeps the last of two equal keys in silence, and a few lines of aliases can fill a memory.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

MOST_NESTING = 100  # objects and arrays inside each other; the tokenizers library stops at 128
LARGEST_YAML = 2**20  # bytes: of lists of settings, not of data
LARGEST_JSON = 2**28  # characters of one value: of a table of weights, a vocabulary, a data set
_DEEPEST_YAML, _MOST_VALUES = 50, 100_000  # of YAML, with every alias written out
_LONGEST = 200  # characters of a reason
_MERGE = "tag:yaml.org,2002:merge"  # of the key <<


def parse_json(
    text: str | bytes,
    where: object,
    *,
    allow_nan: bool = False,
    number: Callable[[str], Any] | None = None,
) -> Any:
    """Returns the value of a JSON text, the way to read JSON from any file.

    Raises ValueError that names `where` for what is no JSON, for a key that stands twice in an
    object, for values nested deeper than `MOST_NESTING`, for a text of more than `LARGEST_JSON`,
    and for NaN and infinity, 1e999 too, unless they are allowed. `number` reads numbers from their
    text, where Python's would round them.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{where} is longer than {LARGEST_JSON} characters, too long for JSON")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=float if allow_nan else _refuse_constant,
            parse_float=number or (float if allow_nan else _finite),
            parse_int=number,
        )
    except RecursionError:
        raise ValueError(f"{where} nests values deeper than {MOST_NESTING}") from None
    except ValueError as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise ValueError(f"{where} is not valid JSON: {brief(error)}") from error
    level = [value] if _may_be_deep(text) else []
    for _ in range(MOST_NESTING + 1):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"{where} nests values deeper than {MOST_NESTING}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(
            f"the key {brief(repr(twice), 60)} stands twice in one object: leave one of them out"
        )
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{brief(text, 60)} is too large for a number")
    return value


def _may_be_deep(text: str | bytes) -> bool:
    """Whether a text has as many brackets as it takes; others need no look at their values."""
    if isinstance(text, str):
        return text.count("[") + text.count("{") > MOST_NESTING
    return text.count(b"[") + text.count(b"{") > MOST_NESTING


def _inside(value: Any) -> Iterable[Any]:
    """Returns what an object or an array holds, nothing for other values."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read_yaml(path: Path) -> Any:
    """Returns the value of a YAML file; raises ValueError that names it and says what is wrong."""
    with path.open("rb") as file:
        content = file.read(LARGEST_YAML + 1)
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except ValueError as error:  # not UTF-8 as well
        raise ValueError(f"{path} is not YAML: {brief(error)}") from None


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text; raises ValueError that is the reason why there is none.

    A key that stands twice in a mapping is refused, with its line; so is a text of more than
    `LARGEST_YAML` bytes, or that nests values too deeply or has too many, aliases written out.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_YAML:
        raise ValueError(f"it has more than {LARGEST_YAML} bytes")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it nests values too deeply") from None
    # A date of no calendar and a number of thousands of digits are a ValueError, a mapping as a
    # key is a TypeError.
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(brief(error)) from None


class _Loader(yaml.SafeLoader):
    """Refuses equal keys, and aliases that stand for more than anybody wrote."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}  # values in each node, aliases written out

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        self._count += 1
        self._depth += 1
        if self._depth > _DEEPEST_YAML:
            raise ValueError(f"it nests values deeper than {_DEEPEST_YAML}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(one)] for one in _below(node))
        elif id(node) not in self._sizes:
            raise ValueError("an alias stands inside what it is an alias of")
        if max(self._count, self._sizes[id(node)]) > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES} values, aliases written out")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Before keys of other mappings are merged in, which own ones may take the place of.
        node = super().compose_mapping_node(anchor)
        found = set()
        for key, _ in node.value:
            if self._named(key) in found:
                line, name = key.start_mark.line + 1, brief(repr(key.value), 60)
                raise ValueError(
                    f"line {line}: the key {name} stands twice in one mapping: leave one of them "
                    "out"
                )
            found.add(self._named(key))
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Merges what `<<` names: own keys win, then those of the mapping that is named first.

        PyYAML 6.0.4 lets a short key of a mapping lose to the one that it has taken the place of,
        where that mapping is merged in turn, and of a list takes the last.
        """
        pairs: dict[Any, Any] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(source, yaml.MappingNode):
                        line = key.start_mark.line + 1
                        raise ValueError(f"line {line}: << takes a mapping, or a list of them")
                    self.flatten_mapping(source)
                    for pair in source.value:
                        pairs.setdefault(self._named(pair[0]), pair)
        own = [pair for pair in node.value if pair[0].tag != _MERGE]
        node.value = list((pairs | {self._named(pair[0]): pair for pair in own}).values())

    def _named(self, key: Any) -> Any:
        """Returns what tells keys apart: their value, so that 1 and 0x1 are one."""
        if not isinstance(key, yaml.ScalarNode):
            return (id(key),)
        return (key.tag,) if key.tag == _MERGE else self.construct_object(key)


def _below(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def brief(error: object, most: int = _LONGEST) -> str:
    """Returns a message on one line that a terminal can show, whatever somebody's file holds."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[: most - 4]} ..."
