"""`Grammar`: the texts of a context-free grammar in Lark's syntax, and how rows are held to it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from dllm.constraints.automaton import ByteAutomaton
from dllm.constraints.base import Constraint, Kind
from dllm.constraints.context_free.costs import costs_of
from dllm.constraints.context_free.network import Network, network_of
from dllm.constraints.regex import expression_of
from dllm.constraints.regular.determinise import TooLargeError, automaton_of
from dllm.constraints.regular.expression import Either, Expression, Repeated, joined
from dllm.constraints.regular.regularise import Bounded, Rules
from dllm.constraints.span import ConstraintSpan

# "depth": an automaton of texts nested to a bounded depth, and exact sets of tokens from it.
# "emptiness": the whole language; each token is asked about before it is written.
# "prefix": the same from left to right, where llguidance says which tokens may come next.
Method = Literal["depth", "emptiness", "prefix"]

_STANDARD = "lark"  # the package whose grammars %import may name


@dataclass(frozen=True)
class Grammar(Constraint):
    """The texts of a grammar, written as for Lark, with `start` as its first rule.

    A text is any sequence of the terminals' texts that the rules derive, with what %ignore names
    before, between and behind them: as Lark's Earley parser reads it with
    `lexer="dynamic_complete"`, without the preferences of other lexers for long or early terminals.

    A grammar that never stands inside itself is exact. Of others each rule is used up to `depth`
    times inside itself with text on both sides, and `kind` is "under"; repetitions at the left or
    at the right end do not count as depth.

    With `method="emptiness"` nothing is cut and `depth` has no part: a token is written if the
    grammar has a text with what stands there, and any text where masks are (arXiv 2508.10111).
    `kind` is "over", since the masks may be too few or too many for that text; where they are, some
    tokens are written anew. Answers are in the language in any case. `method="prefix"` is the same
    for rows that are decoded from left to right, with llguidance to say which tokens may come next.

    Raises ValueError, with line and column, for what is no grammar, for terminals that are no
    regular language, %declare and imports of files.
    """

    text: str
    start: str = "start"
    depth: int = 4
    method: Method = "depth"
    _bounded: Bounded = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth={self.depth} must be at least 0")
        if self.method not in get_args(Method):
            raise ValueError(f"method={self.method!r} must be one of {', '.join(get_args(Method))}")
        object.__setattr__(self, "_bounded", _read(self.text, self.start))

    @property
    def source(self) -> str:
        parts: list[str | int] = [self.text, self.start, self.depth]
        if self.method != "depth":
            parts.append(self.method)
        return json.dumps(parts, ensure_ascii=False)

    @property
    def kind(self) -> Kind:
        if self.by_token:
            return "over"
        return "under" if self._bounded.cut else "exact"

    @property
    def _title(self) -> str:
        return self.text

    def build(self) -> ByteAutomaton:
        if self.by_token:
            raise ValueError(
                f"a Grammar with method={self.method!r} has no automaton, which holes of templates "
                "and exact sets need: take method='depth'"
            )
        return automaton_of(self._bounded.expression(self.depth))

    @property
    def by_token(self) -> bool:
        """Whether each token is asked about by itself: there is no automaton."""
        return self.method != "depth"

    @cached_property
    def network(self) -> Network:
        """The grammar as a network; raises ValueError where it has no text or is too large."""
        bounded = self._bounded
        try:
            network = network_of(bounded.rules, bounded.start, bounded.behind)
        except TooLargeError as error:
            raise ValueError(f"{self} is too large: {error}") from None
        if costs_of(network).rest[network.first] == math.inf:
            raise ValueError(f"{self} accepts no text at all")
        return network

    def check(self) -> None:
        """Raises ValueError where no text is in the language, or it is too large."""
        _ = self.network if self.by_token else self.byte_automaton()


def methods_by_token(given: object) -> set[Method]:
    """Returns the methods of the grammars that a constraint, or a list, asks token by token."""
    if isinstance(given, list):
        return set().union(*map(methods_by_token, given))
    one = given.constraint if isinstance(given, ConstraintSpan) else given
    return {one.method} if isinstance(one, Grammar) and one.by_token else set()


def _read(text: str, start: str) -> Bounded:
    """Returns the rules of a grammar over expressions of its terminals."""
    try:
        # An optional package.
        from lark.exceptions import LarkError
        from lark.load_grammar import load_grammar
    except ImportError:
        raise ImportError("Grammar needs lark: pip install 'dllm[structured]'") from None
    try:
        grammar, files = load_grammar(text, "<grammar>", [], False)
        terminals, rules, ignored = grammar.compile([start], set())
    except LarkError as error:
        raise ValueError(f"the grammar is invalid: {str(error).strip()}") from None
    except RecursionError:
        raise ValueError("the grammar nests its parts too deeply") from None
    except OSError as error:
        raise ValueError(f"the grammar imports a file that cannot be read: {error}") from None
    for name in files:
        if getattr(name, "pkg_name", None) != _STANDARD:
            raise ValueError(f"the grammar imports {name}: write its rules into the grammar itself")
    texts = {terminal.name: _terminal(terminal) for terminal in terminals}
    between = Repeated(Either(tuple(texts[name] for name in ignored)))
    known: Rules = {}
    for rule in rules:
        symbols = tuple(_symbol(symbol, texts, between, ignored) for symbol in rule.expansion)
        known.setdefault(str(rule.origin.name), []).append(symbols)
    if start not in known:
        raise ValueError(f"the grammar has no rule {start}: name its first rule with start=")
    return Bounded(known, start, between)


def _terminal(terminal: Any) -> Expression:
    try:
        return expression_of(terminal.pattern.to_regexp())
    except ValueError as error:
        raise ValueError(f"terminal {terminal.name} of the grammar: {error}") from None


def _symbol(
    symbol: Any, texts: dict[str, Expression], between: Expression, ignored: list[str]
) -> str | Expression:
    """Returns the name of a rule, or the texts of a terminal after what is ignored."""
    if not symbol.is_term:
        return str(symbol.name)
    if symbol.name not in texts:
        raise ValueError(f"terminal {symbol.name} of the grammar is declared without a text")
    return joined(between, texts[symbol.name]) if ignored else texts[symbol.name]
