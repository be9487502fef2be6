"""Grammars against Lark's own parser, over all short texts."""

from __future__ import annotations

import builtins
import itertools
import json
import random
import re
from typing import Any

import pytest
from lark import Lark
from lark.exceptions import LarkError

from dllm.constraints import Grammar
from tests.support.marks import some
from tests.support.schemas import random_text


def is_parsed(parser: Lark, text: str) -> bool:
    try:
        parser.parse(text)
    except LarkError:
        return False
    return True


def lark(text: str) -> Lark:
    return Lark(text, parser="earley", lexer="dynamic_complete")


def texts(alphabet: str, longest: int) -> list[str]:
    sizes = range(longest + 1)
    return ["".join(text) for size in sizes for text in itertools.product(alphabet, repeat=size)]


def random_grammar(source: random.Random) -> str:
    names = ["start", "x", "y"][: source.randrange(1, 4)]
    lines = []
    for name in names:
        alternatives = {
            " ".join(source.choice(['"a"', '"b"', *names]) for _ in range(source.randrange(4)))
            for _ in range(source.randrange(1, 4))
        }
        lines.append(f"{name}: {' | '.join(sorted(alternatives))}")
    return "\n".join(lines)


@pytest.mark.parametrize("seed", some(range(10), every=10))
def test_random_grammars_accept_what_lark_parses(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(15):
        text = random_grammar(source)
        parser = lark(text)
        # Each level below adds a letter or could be left out, up to the number of rules.
        found = Grammar(text, depth=4 * 3)
        expected = [one for one in texts("ab", 4) if is_parsed(parser, one)]
        if not expected:
            continue
        try:
            automaton = found.byte_automaton()
        except ValueError as error:
            assert "is too large" in str(error)  # noqa: PT017 - others are as good
            continue
        assert [one for one in texts("ab", 4) if automaton.accepts(one.encode())] == expected, text


LINEAR = {
    "left": 'start: start "a" | "b" | x "b"\nx: start "a" "a"',
    "right": 'start: "a" start | "b" x |\nx: "a" x | "b"',
    "repeats": 'start: ("a" | x)* ["b"]\nx: "b" "a"~1..3',
    "units": 'start: x\nx: y | "a"\ny: x | "b" y',
    "two directions apart": 'start: start "a" | x\nx: "b" x | "a"',
}


@pytest.mark.parametrize("name", LINEAR)
def test_grammars_that_are_not_inside_themselves_are_exact(name: str) -> None:
    found = Grammar(LINEAR[name], depth=0)
    assert found.kind == "exact"
    automaton, parser = found.byte_automaton(), lark(LINEAR[name])
    for text in texts("ab", 7):
        assert automaton.accepts(text.encode()) == is_parsed(parser, text)


SUMS = """
start: sum
sum: sum "+" product | product
product: product "*" value | value
value: /[0-9]/ | "(" sum ")"
"""


def test_only_brackets_count_as_depth() -> None:
    parser = lark(SUMS)
    for depth in range(3):
        found = Grammar(SUMS, depth=depth)
        assert found.kind == "under"
        automaton = found.byte_automaton()
        assert automaton.num_states == 2 * depth + 2  # nothing but the open brackets is kept
        for text in ("1+2*3*4+5+6*7", "((1+2)*3)+(4)", "(((1)))", "1+", "(1", "1)", "()"):
            opened = max(itertools.accumulate(1 if c == "(" else -(c == ")") for c in text))
            assert automaton.accepts(text.encode()) == (is_parsed(parser, text) and opened <= depth)


JSON = r"""
start: value
value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" [pair ("," pair)*] "}"
pair: STRING ":" value
array: "[" [value ("," value)*] "]"
STRING: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt])*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?/
WS: /[ \n]+/
%ignore WS
"""


def test_a_grammar_of_json() -> None:
    automaton = Grammar(JSON, depth=2).byte_automaton()
    for text in ('{"a": [1, 2.5], "b":{}}', ' [ true,\n"x\\n" ] ', "-3", '[[null], {"k":"v"}]'):
        assert automaton.accepts(text.encode())
    for text in ("[1,]", "{1:2}", "[[[1]]]", '{"a":{"b":{"c":1}}}', "tr ue", ""):
        assert not automaton.accepts(text.encode())
    source = random.Random(0)
    for _ in range(40):
        json.loads(random_text(automaton, source, 60))


def test_what_is_ignored_stands_around_terminals_and_not_in_them() -> None:
    text = 'start: "ab" "c"+\n%ignore " "\n%ignore /#[^#]*#/'
    automaton, parser = Grammar(text).byte_automaton(), lark(text)
    for one in ("abc", " ab  c c ", "a bc", "#x#ab#  #c", "ab", "abc#", "ab##c"):
        assert automaton.accepts(one.encode()) == is_parsed(parser, one)


def test_terminals_templates_flags_and_imports() -> None:
    text = """
    start: _list{item, ","} ";"
    _list{x, s}: x (s x)*
    item: "key"i | NAME | ESCAPED_STRING | INT
    NAME: LETTER (LETTER | "_")~0..2
    %import common (LETTER, ESCAPED_STRING, INT)
    """
    found = Grammar(text)
    assert found.kind == "exact"
    automaton, parser = found.byte_automaton(), lark(text)
    for one in ('KEY,kEy,a_b,"x\\"y",12;', "a_bc;", "_a;", "1,;", ";", "Abc,\u00e9;"):
        assert automaton.accepts(one.encode()) == is_parsed(parser, one)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: a b(", "the grammar is invalid: Unclosed parenthesis, at line 1 column 12"),
        ("start: x", "Rule 'x' used but not defined"),
        ("\n%json {}", "Unexpected input at line 2 column 1"),
        ("start: A\nA: /a(/", "terminal A of the grammar: regex 'a(' is invalid at position 1"),
        (
            "start: A\nA: /((?=a)b)*/",
            "terminal A of the grammar: regex '((?=a)b)*' has look-around",
        ),
        ("start: A\nA: B\nB: A", "Recursion in terminal 'A'"),
        ("%declare X\nstart: X", "terminal X of the grammar is declared without a text"),
        ('first: "a"', "the grammar has no rule start: name its first rule with start="),
        ("start: A\n%import .nowhere.A", "the grammar imports a file that cannot be read"),
    ],
)
def test_grammars_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar(text)


def test_a_grammar_of_a_file_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.lark").write_text('A: "a"')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"other\.lark: write its rules into the grammar itself"):
        Grammar("start: A\n%import .other.A")


def test_grammars_without_a_text_and_those_that_grow() -> None:
    with pytest.raises(ValueError, match="accepts no text at all"):
        Grammar('start: "a" start').byte_automaton()
    with pytest.raises(ValueError, match="is too large"):
        Grammar('start: "ab"~30000').byte_automaton()
    with pytest.raises(ValueError, match="depth=-1 must be at least 0"):
        Grammar(JSON, depth=-1)
    assert Grammar('x: "a"', start="x").byte_automaton().num_states == 2


@pytest.mark.slow
def test_a_depth_that_is_too_large() -> None:
    with pytest.raises(ValueError, match="is too large"):
        Grammar(JSON, depth=20).byte_automaton()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_lark(name: str, *rest: Any) -> Any:
        if name.startswith("lark"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_lark)
    with pytest.raises(ImportError, match=r"Grammar needs lark: pip install 'dllm\[structured\]'"):
        Grammar(SUMS)
