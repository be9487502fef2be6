"""Reads answers: their fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONTAINERS = r"(?:[ \t]*(?:>|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t])))*[ \t]*"
_OPENS = re.compile(rf"(?P<lead>{_CONTAINERS})(?P<run>`{{3,}}|~{{3,}})(?P<info>.*)")
_OPENS_LATE = re.compile(r"(?P<before>[^`]*[^`\s][ \t]*)(?P<run>`{3,})(?P<info>[\w.{}+-]*)[ \t]*$")


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
