"""Reads answers as a person does: their fenced blocks, and the number that they state."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

_CONTAINERS = r"(?:[ \t]*(?:>|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t])))*[ \t]*"
_OPENS = re.compile(rf"(?P<lead>{_CONTAINERS})(?P<run>`{{3,}}|~{{3,}})(?P<info>.*)")
_OPENS_LATE = re.compile(r"(?P<before>[^`]*[^`\s][ \t]*)(?P<run>`{3,})(?P<info>[\w.{}+-]*)[ \t]*$")

_ENDS = re.compile(r"<\|[^|<>]*\|>|</s>|<eos>|\n\s*(?:Question|Q):")  # of a text that runs on
_SIGNS = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
    **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
    **{sign: f"^{n}" for n, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **dict.fromkeys("\x01\x02", " "),  # which mark a box below
    **dict.fromkeys("\u00d7\u22c5\u00b7", "*"),
    "\u2019": "'",
}
_PLAIN = (  # of LaTeX, Markdown and HTML, in this order
    (r"(?<=\d)\s*(?=\\[dtc]?frac)", " "),  # a mixed number
    (r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))", r"\1\2/\3\4 "),
    (r"\{,\}|(?<=\d)\\[,!;: ](?=\d{3})", ","),
    (r"\\(?:text|math|textbf|operator)[a-z]*\s*\{([^{}]*)\}", r" \1 "),
    (r"\\(?:times|cdot)\b", "*"),
    (r"\^\{?\s*\\circ\s*\}?", " degrees "),
    (r"\\([%$#&_])", r"\1"),
    (r"\\(?:[()\[\],;:! ]|[a-zA-Z]+)", " "),
    (r"\*\*|__|`|(?<![\d\s])\*|\*(?!\s*[-\d($.])|(?<!\w)_|_(?!\w)", ""),
    (r"</?[a-zA-Z][^<>\n]{0,40}>", " "),
)
_DIGITS = (
    r"\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?:[,']\d{3})+(?:\.\d+)?|"
    r"\d{1,3}(?: \d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}|\d+,\d{1,2}|\d*\.\d+|\d+"
)
_TERM = re.compile(
    r"(?<![a-zA-Z\d])(?<!\d[.:/])(?<!\^)(?<!\^\{)(?P<sign>(?:-\s?|minus\s|negative\s)?)"
    r"(?P<money>(?:(?:[A-Z]{2})?[$€£¥₹]+|USD|EUR|Rs\.?)\s?)?(?P<inner>-?)"
    rf"(?:(?P<mixed>\d{{1,9}})\s(?=\d{{1,9}}\s?/\s?\d))?(?P<top>{_DIGITS})(?!\d)"
    rf"(?:\s?/\s?(?P<under>{_DIGITS})(?!\d))?(?P<power>[eE][-+]?\d{{1,2}}(?!\w)|"
    r"\s?\*\s?10\^\{?-?\d{1,2}\}?|\^\{?-?\d{1,2}\}?)?(?![.,:/]\d|[eE]\d|(?:st|nd|rd|th)\b)"
    r"(?P<percent>\s?%|\spercent\b)?(?P<scale>\s?(?:hundred|thousand|million|billion|dozen)\b)?"
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_SENTENCE = re.compile(r"[.!?]+(?=[\s\x02]|$)|\n|;\s")
_LABEL = re.compile(
    r"\b(?:step|part|question|problem|example|case|equation|line|option)s?\s*#?$", re.I
)
_BOXES = 50  # of which the last counts
_NEAR = 60  # characters before a number that say what it is
_BESIDE = re.compile(  # stands before what a sentence is not about, as in "42 apples in 2 baskets"
    r"\b(?P<word>in|of|for|per|at|after|from|with|within|by|over|during|every|than|on|among|across|"
    r"between|not)\s+(?:(?:of|the|a|an|all|each|her|his|their|its|my|our|your|these|those|about|"
    r"next|first|last|other|only)\s+)*$",
    re.IGNORECASE,
)
_ANSWER_IS = re.compile(
    r"\banswer\b[^\n.:=]{0,60}?(?:\b(?:is|was|equals|be)\b|=)[\s:]*|<answer>\s*|\banswer\b[^\w\n]*\n\s*",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"\banswer\b[^\n.:]{0,30}:[\s\"']*", re.IGNORECASE)
_ITEM = re.compile(r"(?m)^(\s*(?:#+\s)?)(\d{1,2})[.)](?=\s+\S)")
_TEENS = "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
_SMALL = f"zero|one|two|three|four|five|six|seven|eight|nine|{_TEENS}"
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_WORD = re.compile(rf"\b(?:({_TENS})(?:[ -]({_SMALL}))?|({_SMALL}))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A fenced block, or the text between two."""

    code: str
    fenced: bool
    info: str = ""


@dataclass(frozen=True)
class _Fence:
    """An open fence."""

    run: str  # of back-ticks or tildes
    info: str
    quotes: int = 0  # `>` before it
    indent: int = 0
    before: str = ""  # text on its line

    def read(self, line: str) -> tuple[str | None, str | None]:
        """Returns a line's code, and the next block's info if this one ends, empty without one."""
        for _ in range(self.quotes):
            line = re.sub(r"^[ \t]*> ?", "", line, count=1)
        stripped, width = line.strip(), _width(line)
        code, info = line[min(width, self.indent) :], stripped.lstrip(self.run[0]).strip()
        if stripped.startswith(self.run) and "`" not in info:
            return (None, info) if width <= self.indent + 3 else (code, None)
        if stripped.endswith(self.run):
            return code.rstrip()[: -len(self.run)], ""
        return code, None


def parts(text: str) -> list[Part]:
    """Returns fenced blocks and the text between them, in their order.

    Fences are CommonMark's, and those that are seen often beside it: closed at the end of a line of
    code, opened behind a colon or before the last one is closed, indented by more than three.
    """
    found, fence, lines = list[Part](), None, list[str]()
    for line in text.split("\n"):
        if fence is None:
            fence = _opening(line)
            lines.append(line if fence is None else fence.before)
            if fence is not None:
                found, lines = [*found, Part("\n".join(lines), fenced=False)], []
            continue
        code, info = fence.read(line)
        if code is not None:
            lines.append(code)
        if info is not None:
            found, lines = [*found, Part("\n".join(lines), True, fence.info)], []
            fence = _Fence(fence.run, info, fence.quotes, fence.indent) if info else None
    return [*found, Part("\n".join(lines), fence is not None, fence.info if fence else "")]


def _opening(line: str) -> _Fence | None:
    found = _OPENS.match(line)
    if found is not None and not (found["run"][0] == "`" and "`" in found["info"]):
        lead, quotes = found["lead"].expandtabs(4), found["lead"].count(">")
        indent = len(lead) - (lead.rindex(">") + 2 if quotes else 0)
        return _Fence(found["run"], found["info"].strip(), quotes, max(indent, 0))
    found = _OPENS_LATE.match(line)
    return None if found is None else _Fence(found["run"], found["info"], before=found["before"])


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())


@dataclass(frozen=True)
class Term:
    """A number in a text, and all that it may stand for: 50% is 50, and one half."""

    start: int
    end: int
    values: frozenset[Fraction]
    is_money: bool


def stated_number(text: str) -> frozenset[Fraction]:
    """Returns the values of the number that an answer comes to; empty if there is none.

    Where it says so: behind the first hashes, in the last box, behind "the answer is". Else the
    last number of the last sentence that is about one.
    """
    text = re.sub(r"(?s).*</think>", "", text).strip()
    end = _ENDS.search(text)
    text = _plain(_boxed("".join(_SIGNS.get(sign, sign) for sign in text[: end and end.start()])))
    for line in re.findall(r"####([^\n]*)", text):
        if _begins(line):
            return _first(line)
    marks = [(found.start(), found[1]) for found in re.finditer(r"(?s)\x01(.*?)\x02", text)]
    marks += [(f.start(), _sentence(text[f.end() :])) for f in _ANSWER_IS.finditer(text)]
    for _, mark in sorted(marks, reverse=True):
        if _first(mark):
            return _first(mark)
    for found in reversed(list(_ANSWER.finditer(text))):
        line = _sentence(text[found.end() :])
        if _begins(line) and len(list(_terms(line))) == 1:
            return _first(line)
    return _last(text.replace("\x01", " ").replace("\x02", " "))


def _boxed(text: str) -> str:
    """Returns a text with each LaTeX box between two marks."""
    for found in list(re.finditer(r"\\f?boxe?d?\s*\{", text))[: -_BOXES - 1 : -1]:
        depth, end = 1, found.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inner = text[found.end() : end - (depth == 0)]
        text = f"{text[: found.start()]}\x01{inner}\x02{text[end:]}"
    return text


def _plain(text: str) -> str:
    """Returns a text without what is there for its looks."""
    text = re.sub("(?<=[0-9])(?=[½¼¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/").replace("\r", "\n")
    text = re.sub(r"[^\x00-\x7f]", lambda one: str(unicodedata.decimal(one[0], one[0])), text)
    for pattern, plain in _PLAIN:
        text = re.sub(pattern, plain, text)
    number = 0
    for item in list(_ITEM.finditer(text)):
        if int(item[2]) == number + 1:  # of a list, whose numbers say nothing
            number, (start, end) = number + 1, item.span(2)
            text = f"{text[:start]}{' ' * (end - start)}{text[end:]}"
    return text if re.search(r"\d", text) else _WORD.sub(_digits, text)


def _digits(found: re.Match[str]) -> str:
    tens, unit, small = (str(word or "").lower() for word in found.groups())
    ones = _SMALL.split("|").index(unit or small or "zero")
    return str(ones + (10 * _TENS.split("|").index(tens) + 20 if tens else 0))


def _terms(text: str) -> Iterator[Term]:
    for found in _TERM.finditer(text):
        try:
            value = _value(found["top"]) / _value(found["under"] or "1") + int(found["mixed"] or 0)
        except (ValueError, ZeroDivisionError):
            continue
        power = re.findall(r"-?\d+", found["power"] or "")
        if power:
            base = value if found["power"].startswith("^") else Fraction(10)
            if not base or len(found["top"]) > 20:
                continue
            value = base ** int(power[-1]) * (1 if found["power"].startswith("^") else value)
        if found["inner"] or _is_minus(text[: found.start()].rpartition("\n")[2], found["sign"]):
            value = -value
        values = {value, value / 100} if found["percent"] else {value}
        if found["scale"]:
            values |= {value * _SCALES[found["scale"].strip()]}
        yield Term(found.start(), found.end(), frozenset(values), found["money"] is not None)


def _value(digits: str) -> Fraction:
    """Returns the value of digits with marks for thousands, and a dot or a comma."""
    if len(digits) > 400:
        raise ValueError("too long for a number that is meant")
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}|\d+,\d{1,2}", digits):
        digits = digits.replace(".", "").replace(",", ".")
    return Fraction(re.sub(r"[, ']", "", digits))


def _is_minus(before: str, sign: str) -> bool:
    """Whether a sign before a number is its own, not a dash, a bullet or that of a difference."""
    last = before.rstrip()[-1:]
    if not sign or (last and (last.isdigit() or last in ")%")):
        return False
    return not sign.startswith("-") or not sign[1:] or last in tuple("=:(<>")


def _sentence(text: str) -> str:
    text = text.lstrip()
    end = _SENTENCE.search(text)
    return text[: end.start()] if end else text


def _begins(text: str) -> bool:
    """Whether a text begins with a number."""
    first = next(_terms(text), None)
    return first is not None and not _LETTERS.search(text[: first.start])


def _first(text: str) -> frozenset[Fraction]:
    """Returns the number that a statement gives, behind its last equals sign if it has any."""
    terms = list(_terms(text))
    behind = [term for term in terms if term.start > text.rfind("=")] or terms
    return next((one.values for one in _chosen(behind, text)), frozenset())


def _last(text: str) -> frozenset[Fraction]:
    """Returns the last number of the last sentence that has one that is not beside the point."""
    for sentence in reversed(_SENTENCE.split(text)):
        terms = [
            term
            for term in _terms(sentence)
            if not _LABEL.search(sentence[max(term.start - _NEAR, 0) : term.start])
            and sentence.count("(", 0, term.start) <= sentence.count(")", 0, term.start)
        ]
        if terms:
            return _chosen(terms, sentence)[-1].values
    return next((term.values for term in reversed(list(_terms(text)))), frozenset())


def _chosen(terms: Sequence[Term], text: str) -> list[Term]:
    """Returns the numbers that a sentence is about, all if it is about none."""
    chosen = []
    for number, term in enumerate(terms):
        beside = _BESIDE.search(text[max(term.start - _NEAR, 0) : term.start])
        word = beside["word"].lower() if beside else ""
        if word == "of":  # "42 of the 80 rolls", but "a total of 80"
            gap = text[terms[number - 1].end : term.start] if number else "a, b"
            word = "" if "," in gap or len(gap.split()) > 4 else word
        if not word or (word == "for" and term.is_money):
            chosen.append(term)
    return chosen or list(terms)
