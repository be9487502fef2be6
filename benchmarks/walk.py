"""How far one step of `generate(threshold, dual)` walks: files, functions and changes of file.

    python -m benchmarks.walk

Follows the calls of a step within a block with `sys.settrace`; a change of file is a call into
another file than the call before it. Prints the walk and its figures (docs/notes/design.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import dllm

ROOT = Path(dllm.__file__).resolve().parents[1]
PROMPT = "tom has 53 pens. tom loses 3. how many pens does tom have?"


@dataclass(frozen=True)
class Walk:
    """The calls of a step, in order."""

    calls: tuple[tuple[str, str], ...]  # file below the repository's root, function

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are entered, in the order of their first call."""
        return tuple(dict.fromkeys(file for file, _ in self.calls))

    @property
    def num_functions(self) -> int:
        """Different functions that are called."""
        return len(set(self.calls))

    @property
    def num_changes(self) -> int:
        """Calls into another file than the call before them."""
        return sum(one[0] != other[0] for one, other in pairwise(self.calls))


def walk(model: dllm.HostedModel, scheduler: str = "threshold", cache: str = "dual") -> Walk:
    """Returns the walk of the second step of a generation, which lies within a block."""
    calls: list[tuple[str, str]] = []
    names = {name: _below_root(name) for name in ("",)}

    def trace(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        file = names.setdefault(code.co_filename, _below_root(code.co_filename))
        if event == "call" and file is not None:
            calls.append((file, f"{code.co_name}:{code.co_firstlineno}"))

    options: dict[str, Any] = {"max_new_tokens": 64, "block_length": 16}
    steps = iter(dllm.stream(model, PROMPT, scheduler=scheduler, cache=cache, **options))
    next(steps)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        next(steps)
    finally:
        sys.settrace(before)
    return Walk(tuple(calls))


def _below_root(name: str) -> str | None:
    """Returns a file of the package below the root, None for what is not the project's."""
    path = Path(name).resolve()  # the parts are reached through links
    inside = name.endswith(".py") and path.is_relative_to(ROOT) and ".venv" not in path.parts
    return str(path.relative_to(ROOT)) if inside and path.parts[-2] != "benchmarks" else None


def main() -> None:
    """Prints the walk, a line for each stay in a file, and its figures."""
    found = walk(dllm.load("tiny"))
    for file, calls in groupby(found.calls, key=lambda call: call[0]):
        print(f"{file}: {' '.join(name.partition(':')[0] for _, name in calls)}")
    figures = f"{len(found.files)} files, {found.num_functions} functions"
    print(f"{figures}, {found.num_changes} changes of file")


if __name__ == "__main__":
    main()
