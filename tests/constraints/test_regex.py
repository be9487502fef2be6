"""Regular expressions against `re`, and patterns that are refused."""

from __future__ import annotations

import itertools
import random
import re
import sys
import time

import numpy as np
import pytest

from dllm.constraints import Choice, Regex
from dllm.constraints.regex import Reading, expression_of
from dllm.constraints.regular.determinise import MAX_STATES, automaton_of, both, without
from dllm.constraints.regular.expression import ANY, besides, characters
from tests.support.marks import some


def random_pattern(source: random.Random, depth: int) -> str:
    """Returns a pattern over a, b and c with every kind of part."""
    kind = source.choice(("letter", "class", "sequence", "either", "repeat")) if depth else "letter"
    inner = lambda: random_pattern(source, depth - 1)  # noqa: E731
    if kind == "letter":
        return source.choice(("a", "b", "c", ".", ""))
    if kind == "class":
        return source.choice(("[ab]", "[^a]", "[^bc]", "[a-b]", r"[^\s]", r"\w", r"[\d\n]"))
    if kind == "sequence":
        return inner() + inner()
    if kind == "either":
        return f"(?:{inner()}|{inner()})"
    mark = source.choice(("*", "+", "?", "{2}", "{1,2}", "{0,3}", "{2,}", "*?", "{1,2}?"))
    return f"(?:{inner()}){mark}"


ALPHABET = "ab\u00e9\n1"
TEXTS = ["".join(text) for size in range(5) for text in itertools.product(ALPHABET, repeat=size)]


@pytest.mark.parametrize("seed", some(range(8), every=4))
def test_random_patterns_accept_what_re_accepts(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(40):
        pattern = random_pattern(source, 4)
        automaton = automaton_of(expression_of(pattern))
        compiled = re.compile(pattern)
        wrong = [
            text
            for text in TEXTS
            if bool(compiled.fullmatch(text)) != automaton.accepts(text.encode())
        ]
        assert not wrong, pattern


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"(?a)\w", r"(?a)\W", ".", "(?s)."),
        *("(?i)k", "(?i)[^s]", "(?i)\u017f", "(?i:\u00df)", "(?i)[\u0430-\u044f]"),
        *("[^\\d\u00e0-\u00ff]", r"[\W\d]", "[\U0001f600-\U0001f64f]"),
    ],
)
def test_a_class_is_that_of_re_in_all_of_unicode(pattern: str) -> None:
    automaton = Regex(pattern).byte_automaton()
    points = [*range(0x3000), *range(0x3000, 0x110000, 251), 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF]
    compiled = re.compile(pattern)
    for point in points:
        if not 0xD800 <= point <= 0xDFFF:
            text = chr(point)
            assert bool(compiled.fullmatch(text)) == automaton.accepts(text.encode()), hex(point)


def test_bytes_that_are_no_utf8_are_never_accepted() -> None:
    automaton = Regex("(?s).*").byte_automaton()
    source = random.Random(0)
    edges = b"A\x80\xbf\xc0\xc3\xe0\xed\xa0\xef\xf0\xf4\x90\xff"
    for _ in range(3000):
        text = bytes(source.choice(edges) for _ in range(source.randrange(6)))
        try:
            text.decode()
        except UnicodeDecodeError:
            assert not automaton.accepts(text)
        else:
            assert automaton.accepts(text)


@pytest.mark.parametrize(
    ("pattern", "states"),
    [("abc", 4), ("a*", 1), ("(a|aa)*", 1), (".", 9), ("(a|b)*a(a|b){3}", 16), ("a{3,5}", 6)],
)
def test_automata_are_minimal(pattern: str, states: int) -> None:
    assert Regex(pattern).byte_automaton().num_states == states


def test_no_two_states_of_random_automata_accept_the_same() -> None:
    source = random.Random(1)
    for _ in range(40):
        automaton = automaton_of(expression_of(random_pattern(source, 5)))
        if automaton.num_states > 60:  # the check below is slow
            continue
        table = np.vstack([automaton.table, np.full((1, 256), -1)])
        kind = np.append(automaton.accepting, False).astype(np.int64)
        for _ in table:  # Moore's refinement, to the end
            _, kind = np.unique(
                np.hstack([kind[:, None], kind[table]]), axis=0, return_inverse=True
            )
        assert len(set(kind.tolist())) == len(table)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a(b", "at position 1: missing ), unterminated subpattern"),
        ("[z-a]", "at position 1: bad character range z-a"),
        ("a{3,1}", "at position 2: min repeat greater than max repeat"),
        ("ab**", "at position 3: multiple repeat"),
        ("a\\", "at position 1: bad escape (end of pattern)"),
        ("a{99999999999}", "repetition number is too large"),
        ("(" * 5000 + ")" * 5000, "groups are nested too deeply"),
        ("((?=a)b)*", "look-around, (?=...) or (?<=...), inside a part that is not at the edge"),
        ("a((?<!a)b)", "look-around, (?!...) or (?<!...), inside a part that is not at the edge"),
        ("a(?!b)b(?<!a)", "look-around, (?!...) or (?<!...), inside"),
        (r"(a)\1", "a back reference"),
        ("(?P<x>a)(?P=x)", "a back reference"),
        ("(a)?(?(1)b|c)", "a conditional group"),
        (r"\bfoo", r"a word boundary, \b or \B"),
        ("a$b", "^ or $ elsewhere than at the beginning and the end"),
        ("(^a)*", "^ or $ elsewhere"),
    ],
)
def test_what_is_no_language_is_refused(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        Regex(pattern)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has none of these")
@pytest.mark.parametrize("pattern", ["a*+", "(?>a)b"])
def test_parts_that_never_go_back_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"possessive|atomic"):
        Regex(pattern)


@pytest.mark.parametrize("pattern", ["^a|b$", "(^a|b)c$", r"\Aa\Z", "^$", "(?:(a$)|b)", "(?m)^a$"])
def test_anchors_at_the_edges_say_nothing(pattern: str) -> None:
    automaton = Regex(pattern).byte_automaton()
    for text in TEXTS:
        assert bool(re.fullmatch(pattern, text)) == automaton.accepts(text.encode())


@pytest.mark.parametrize(
    "pattern", ["a", "^a", "a$", "^a$", "^a|b$", "(^a|b)c?", "", "^", "(a|^)b(1|$)", "[ab]{2}$|^1"]
)
def test_a_search_is_that_of_re(pattern: str) -> None:
    automaton = automaton_of(expression_of(pattern, Reading(search=True)))
    for text in TEXTS:
        # $ of re is also before a newline at the end; here it is the end.
        expected = bool(re.search(pattern.replace("$", r"\Z"), text))
        assert expected == automaton.accepts(text.encode()), text


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?!ab).*", "[^1](?=a|b1).*", "(?!a)(?!b)..", ".*(?<!a)", ".*(?<=ab)1?", "(?<!a)b*"),
        *("a.*?(?<!b)(bb)*?1", "(?!.*aa).*", "((?!a).*|b)", "(?:a|b(?<!a))(?!b)[ab]*"),
    ],
)
def test_look_around_up_to_the_edges(pattern: str) -> None:
    automaton = automaton_of(expression_of(pattern))
    found = automaton_of(expression_of(pattern, Reading(search=True)))
    for text in TEXTS:
        assert bool(re.fullmatch(pattern, text)) == automaton.accepts(text.encode()), text
        assert bool(re.search(pattern, text)) == found.accepts(text.encode()), text


def test_a_strict_class_is_one_in_both_readings() -> None:
    for pattern in (r"\d", r"\W", r"[^\d]"):
        automaton = automaton_of(expression_of(pattern, Reading(strict=True)))
        for text in map(chr, range(0x3000)):
            both_ways = re.fullmatch(pattern, text) and re.fullmatch(pattern, text, re.ASCII)
            assert bool(both_ways) == automaton.accepts(text.encode())


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a|b)*a.{20}", "((a{100}){100}){100}", "(){4000000000}"),
        *(
            pytest.param(pattern, marks=pytest.mark.slow)
            for pattern in (".{10000}", "(a?){3000}a{3000}", r"\w{200}", "((a?b?){0,500}c?){0,500}")
        ),
    ],
)
def test_patterns_that_grow_are_refused_in_time(pattern: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=f"is too large: .*({MAX_STATES} states|parts|too long)"):
        Regex(pattern).byte_automaton()
    assert time.process_time() - start < 8


def test_patterns_that_make_re_slow_are_nothing_here() -> None:
    automaton = Regex("(x+x+)+y").byte_automaton()
    assert automaton.num_states == 4
    assert not automaton.accepts(b"x" * 10_000)
    assert automaton.accepts(b"x" * 10_000 + b"y")


def test_a_language_without_a_text_is_refused() -> None:
    for pattern in (r"[^\s\S]", "a[^\\d\\D]b", "[\ud800]"):
        with pytest.raises(ValueError, match="accepts no text at all"):
            Regex(pattern).byte_automaton()


def test_both_and_without_are_those_of_sets() -> None:
    source = random.Random(2)
    for _ in range(30):
        one, other = random_pattern(source, 3), random_pattern(source, 3)
        parts = [automaton_of(expression_of(pattern)) for pattern in (one, other)]
        meet, left = both(*parts), without(*parts)
        for text in TEXTS[:200]:
            a, b = (bool(re.fullmatch(pattern, text)) for pattern in (one, other))
            assert meet.accepts(text.encode()) == (a and b)
            assert left.accepts(text.encode()) == (a and not b)


def test_ranges_of_characters() -> None:
    assert characters([(5, 9), (1, 5), (10, 12), (20, 20)]).ranges == ((1, 12), (20, 20))
    assert characters([(0xD7FE, 0xE001)]).ranges == ((0xD7FE, 0xD7FF), (0xE000, 0xE001))
    assert ANY.ranges == ((0, 0xD7FF), (0xE000, 0x10FFFF))
    assert besides([(3, 4), (0, 1), (4, 0x10FFFF)]).ranges == ((2, 2),)


def test_a_choice_is_its_texts() -> None:
    texts = ["yes", "no", "", "n\u00f6", "yes, please"]
    automaton = Choice(texts).byte_automaton()
    for text in [*texts, "ye", "yes,", "nono", "n"]:
        assert automaton.accepts(text.encode()) == (text in texts)
    words = [f"word {number}" for number in range(5000)]
    assert Choice(words).byte_automaton().num_states < 100


def test_a_choice_refuses_what_is_none() -> None:
    with pytest.raises(ValueError, match="no text to choose from"):
        Choice([])
    with pytest.raises(TypeError, match="give a list"):
        Choice("yes")
    with pytest.raises(TypeError, match="3 is none"):
        Choice(["yes", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        Choice(["\ud800"])
    with pytest.raises(TypeError, match="must be a string"):
        Regex(b"a")  # type: ignore[arg-type]
