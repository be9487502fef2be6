"""The part files of several processes, and how they become one results file again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from dllm.eval.run.results import Result, read_lines
from dllm.eval.run.writer import Writer, writing
from dllm.eval.tasks.task import Problem


def shard_of(output: Path, rank: int) -> Path:
    """Returns where a process writes: `rows.jsonl.part0` and so on."""
    return output.with_name(f"{output.name}.part{rank}")


def find_shards(output: Path) -> list[Path]:
    """Returns the part files that are there, of whichever launch."""
    if not output.parent.is_dir():
        return []
    prefix = f"{output.name}.part"
    found = [path for path in output.parent.iterdir() if path.name.startswith(prefix)]
    return sorted(path for path in found if path.name.removeprefix(prefix).isdigit())


def absorb(writer: Writer, problems: Sequence[Problem]) -> None:
    """Moves the lines of all part files into the results file, those of short prompts first.

    A kill at any moment loses nothing: a part file goes when its lines are on the disk, and lines
    that are there already do not come twice. Raises BusyError if a process still writes one.
    """
    shards = find_shards(writer.path)
    if not shards:
        return
    with ExitStack() as open_shards:
        parts = [open_shards.enter_context(writing(shard)) for shard in shards]
        there = {(result.run, result.id) for result in read_lines(writer.path)}
        found = {(r.run, r.id): r for shard in shards for r in read_lines(shard)}
        new = [result for key, result in found.items() if key not in there]
        places = {problem.id: place for place, problem in enumerate(problems)}
        if new:
            writer.append(sorted(new, key=lambda r: (r.run, len(r.prompt), places.get(r.id, -1))))
        for part in parts:
            part.remove()


def by_length(problems: Iterable[Problem]) -> list[Problem]:
    """Returns problems with the shortest prompts first: a pass costs what its longest row does."""
    return sorted(problems, key=lambda problem: len(problem.prompt))


def split(problems: Sequence[Problem], count: int) -> list[list[Problem]]:
    """Returns a part for each process; every one has prompts of all lengths."""
    ordered = by_length(problems)
    return [ordered[rank::count] for rank in range(count)]


class Tail:
    """Reads what other processes add to their part files."""

    def __init__(self, shards: Iterable[Path]) -> None:
        self._read: Mapping[Path, list[int]] = {shard: [0] for shard in shards}

    def new(self) -> list[Result]:
        """Returns the results that have come since the last call."""
        found = []
        for shard, place in self._read.items():
            if shard.exists():
                with shard.open("rb") as file:
                    file.seek(place[0])
                    whole = file.read().rpartition(b"\n")[0]
                if whole:
                    place[0] += len(whole) + 1
                    found += [Result(**json.loads(line)) for line in whole.split(b"\n")]
        return found
