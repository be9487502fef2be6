"""Measures the rows of an ablation into a folder that a kill leaves whole."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

import dllm
from dllm.compatible import check
from dllm.eval.ablation.ablation import Ablation, Row
from dllm.eval.ablation.lines import Candidate, Line
from dllm.eval.run.describe import label_of, name_of, parts_of, sources_of
from dllm.eval.run.record import Start, read_records, write_json
from dllm.eval.run.results import (
    BusyError,
    RefusedError,
    Result,
    Writer,
    read_results,
    set_aside,
)
from dllm.eval.run.run import Run
from dllm.eval.tasks import Task, find_task
from dllm.eval.tasks.task import Problem, TaskOptions
from dllm.models import HostedModel, load
from dllm.models.loading.folder import EMBEDDED, HUB_ID
from dllm.models.loading.weights import DeviceMap
from dllm.reading import parse_json
from dllm.settings import resolve

FILE = "ablation.json"
USUAL = 100  # problems of a task that makes its own
_ALL = 10**6  # more problems than any data set has
_WITH_CODE = ("humaneval",)
_UNFIT = re.compile(r"[^\w.,=@+-]+")  # for the name of a file


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made if it is not there; a kill lets go of it.

    Two would measure the same problems twice: raises ValueError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").touch()
    try:
        lock = Writer(folder / ".lock")
    except BusyError:
        raise ValueError(
            f"another `dllm ablate` is at work in {folder}: wait for it, or give another --output"
        ) from None
    with closing(lock):
        yield


@dataclass(frozen=True)
class Entry:
    """Where the results of a row are."""

    key: str  # of what the row asks for: another one is another row
    run: str
    file: str  # relative to the folder


class State:
    """The rows of a folder that were begun, written anew whenever one begins."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.entries: dict[str, Entry] = {}
        if self.path.exists():
            try:
                rows = parse_json(self.path.read_text(encoding="utf-8"), FILE)["rows"]
                self.entries = {name: Entry(**entry) for name, entry in rows.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path} is not the record of an ablation ({error}): delete it, what was "
                    "measured is in runs/ and is found again"
                ) from None

    def note(self, name: str, entry: Entry) -> None:
        """Remembers where the results of a row are."""
        self.entries[name] = entry
        rows = {known: asdict(value) for known, value in self.entries.items()}
        write_json(self.path, {"rows": rows})


def key_of(row: Row, task: Task) -> str:
    """Returns a digest of what a row asks for, known before its model is loaded."""
    settings = resolve({}, None, row.given)
    asked = {
        "version": dllm.__version__,
        "model": row.model,
        "files": _stamps(row.model),
        "dtype": row.dtype,
        "task": [task.name, dict(task.options)],
        **({} if row.constrained else {"constrained": False}),
        **({} if row.revision is None else {"revision": row.revision}),
        **({} if row.adapter is None else {"adapter": [row.adapter, _stamps(row.adapter)]}),
        "settings": ", ".join(f"{name}={value!r}" for name, value in vars(settings).items()),
        **parts_of(settings),
        "sources": {} if row.missing else sources_of(settings, task),
    }
    return name_of(asked)


def _stamps(model: str) -> Any:
    """Returns sizes and times of a checkpoint's files, None where it is not on this machine.

    Only to know without loading it that nothing has changed; a run is named by its content.
    """
    folder = EMBEDDED if model == "tiny" else Path(model).expanduser()
    if not folder.is_dir():
        config = try_to_load_from_cache(model, "config.json") if HUB_ID.fullmatch(model) else None
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files]


@dataclass(frozen=True)
class Trial(Candidate):
    """A row with the problems that it is to answer."""

    row: Row
    task: Task

    @classmethod
    def of(cls, number: int, row: Row, task: Task, problems: Sequence[Problem]) -> Trial:
        """Returns the trial of a row, whose curve is its method."""
        subject = row.whole, row.task.text
        return cls(number, row.name, row.method, str(number), subject, problems, row, task)


def trials_of(ablation: Ablation, limit: int | None, *, run_code: bool) -> list[Trial]:
    """Returns the rows with their problems; a task's are read once.

    Raises ValueError for problems that cannot be read, before anything is run.
    """
    choices = dict.fromkeys(row.task for row in ablation.rows)
    if run_code and not any(choice.name in _WITH_CODE for choice in choices):
        raise ValueError(f"--run-code: no row has a task with code to run ({_WITH_CODE[0]})")
    tasks: dict[object, tuple[Task, list[Problem]]] = {}
    for choice in choices:
        code = run_code and choice.name in _WITH_CODE
        options = TaskOptions(choice.data, choice.style, choice.examples, choice.shots, code)
        task = find_task(choice.name, options)
        count = limit or ablation.limit or (_ALL if task.options and task.select is None else USUAL)
        tasks[choice] = task, task.take(count)
    return [Trial.of(n, row, *tasks[row.task]) for n, row in enumerate(ablation.rows, start=1)]


def by_model(trials: Sequence[Trial]) -> list[Trial]:
    """Returns trials in an order in which each model is loaded once."""
    models = list(dict.fromkeys(trial.row.loaded for trial in trials))
    return sorted(trials, key=lambda trial: models.index(trial.row.loaded))


class Bench:
    """Runs trials; holds one model at a time, and none while everything is there already."""

    def __init__(
        self,
        folder: Path,
        device: str | None = None,
        device_map: DeviceMap | None = None,
        *,
        keep_trace: bool = True,
        fresh: bool = False,
    ) -> None:
        """Goes on in a folder; with `fresh`, what is there is kept under names with .old."""
        self.aside = [new for name in (FILE, "runs") if fresh and (new := set_aside(folder / name))]
        self.folder, self.device, self.keep_trace = folder, device, keep_trace
        self.device_map = device_map
        self.state = State(folder)
        self._loaded: tuple[tuple[str | None, ...], HostedModel] | None = None

    def finished(self, trial: Trial) -> Line[Trial] | None:
        """Returns a trial whose results are all in the folder, else None."""
        entry = self.state.entries.get(trial.name)
        if entry is None or entry.key != key_of(trial.row, trial.task):
            return None
        known = read_results(self.folder / entry.file, entry.run)
        results = [known[problem.id] for problem in trial.problems if problem.id in known]
        unscored = trial.task.scored and any(result.correct is None for result in results)
        whole = len(results) == len(trial.problems) and not unscored
        return Line(trial, results) if whole else None

    def results(self, trial: Trial) -> Iterator[Result]:
        """Yields a result for each problem, known ones first; raises what `Run.results` raises."""
        run = self._run(trial)
        file = Path("runs") / f"{_UNFIT.sub('-', label_of(run.describe()))[:80]}-{run.name}.jsonl"
        key = key_of(trial.row, trial.task)
        self.state.note(trial.name, Entry(key, run.name, str(file)))
        yield from run.results(trial.problems, self.folder / file)

    def is_changed(self, trial: Trial) -> bool:
        """Whether the folder has results under a trial's name that something else made."""
        entry = self.state.entries.get(trial.name)
        return entry is not None and entry.key != key_of(trial.row, trial.task)

    def there(self, trial: Trial) -> int:
        """Returns how many problems of a trial the folder has answers to, as far as it knows."""
        entry = self.state.entries.get(trial.name)
        if entry is None or self.is_changed(trial):
            return 0
        known = read_results(self.folder / entry.file, entry.run)
        return sum(problem.id in known for problem in trial.problems)

    def starts(self, lines: Sequence[Line[Trial]]) -> list[Start]:
        """Returns the commands that made the results of lines."""
        starts: list[Start] = []
        for line in lines:
            entry, made = self.state.entries.get(line.name), {one.start for one in line.results}
            records = read_records(self.folder / entry.file) if entry and made else {}
            if entry and entry.run in records:
                starts += [start for start in records[entry.run].starts if start.id in made]
        return starts

    def _run(self, trial: Trial) -> Run:
        row = trial.row
        if row.missing:
            raise RefusedError(row.missing)
        model = self._model(row)
        settings = resolve(model.defaults, None, row.given)
        run = Run(model, trial.task, settings, row.batch_size, keep_trace=self.keep_trace)
        run = replace(run, constrained=row.constrained)
        try:
            check(model, settings)
            run.check(trial.problems)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        return run

    def _model(self, row: Row) -> HostedModel:
        if self._loaded is None or self._loaded[0] != row.loaded:
            self._loaded = None
            gc.collect()  # two models seldom fit side by side
            try:
                model = load(
                    row.model,
                    dtype=row.dtype,
                    device=self.device,
                    device_map=self.device_map,
                    revision=row.revision,
                    adapter=row.adapter,
                )
                self._loaded = row.loaded, model
            except (ValueError, OSError) as error:
                raise RefusedError(f"the model cannot be loaded: {error}") from error
        return self._loaded[1]
