"""Picks one run of a results file, by name or by what it is called in tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dllm.eval.run.describe import label_of
from dllm.eval.run.results import Result, read_lines

Results = Mapping[str, Result]  # by problem id


def runs_in(path: Path) -> dict[str, dict[str, Result]]:
    """Returns the results of each run in a file, in the order of their first lines.

    Raises ValueError for a file that is missing, empty or no results file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a results file of `dllm eval --output`")
    if not path.is_file():
        raise ValueError(f"there is no results file {path}: `dllm eval --output {path}` writes one")
    found: dict[str, dict[str, Result]] = {}
    for result in read_lines(path):
        found.setdefault(result.run, {})[result.id] = result
    if not found:
        raise ValueError(f"{path} holds no results yet")
    return found


def label_in(results: Results) -> str:
    """Returns what a run is called: scheduler / cache, and the verifier if there is one."""
    return label_of(next(iter(results.values())).settings)


def choose(path: Path, asked: str | None, option: str) -> Results:
    """Returns the run whose name begins with `asked`, or whose label has it in it; or the only one.

    Raises ValueError that lists the runs if that is none or several.
    """
    runs = runs_in(path)
    labels = {name: label_in(results) for name, results in runs.items()}
    fits = list(runs)
    if asked is not None:
        exact = [name for name in runs if asked in (name, labels[name])]
        fits = exact or [n for n in runs if n.startswith(asked) or asked in labels[n]]
    if len(fits) == 1:
        return runs[fits[0]]
    listed = "; ".join(f"{name} = {labels[name]}, {len(runs[name])} problems" for name in runs)
    what = f"{path} has {len(runs)} runs" if asked is None else f"{option} {asked!r} fits "
    if asked is not None:
        what += f"{len(fits) or 'none'} of the {len(runs)} runs in {path}"
    raise ValueError(f"{what}: name one by {option} with its name or label: {listed}")
