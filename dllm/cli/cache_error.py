"""`dllm cache-error`: what caches change of a decoding, pass by pass, and what they save."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as RichTable
from rich.text import Text
from typer import Option

from dllm.cli import options
from dllm.cli.asked import read_texts
from dllm.cli.chosen import collect
from dllm.cli.loading import load_model, placed
from dllm.cli.shown import Terminal, say
from dllm.cli.shown.measured import empty_table, progress
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.compare.cache_error_run import CacheError, CacheErrorRun, Observed, summarise
from dllm.eval.report.tables import Table, write_csv, write_markdown
from dllm.eval.tasks import Task, find_task
from dllm.eval.tasks.task import Problem
from dllm.settings import DEFAULT_BLOCK_LENGTH, resolve

LEGEND = (
    "Each pass of the cached run beside a full pass over the same canvas, at the columns that "
    "could be committed: logit error, KL(exact || cached) in nats, how often the proposed token "
    "and the most confident column are the same, Spearman's rho of confidence. Same output: "
    "tokens equal to those of the run without a cache. Age: passes since attended keys were "
    "written."
)
_SMALL = 0.01
HEADS: dict[str, Callable[[CacheError], str]] = {
    "cache": lambda row: row.cache,
    "mean error": lambda row: _short(row.mean_error),
    "max error": lambda row: _short(row.max_error),
    "KL": lambda row: _short(row.divergence),
    "same token %": lambda row: _part(row.same_tokens),
    "same first %": lambda row: _part(row.same_first),
    "rho": lambda row: "-" if row.rank_correlation is None else f"{row.rank_correlation:.2f}",
    "same output %": lambda row: _part(row.same_output),
    "right %": lambda row: _part(row.correct),
    "forwards": lambda row: f"{row.forwards:.1f}",
    "FLOPs saved %": lambda row: _part(row.flops_saved),
    "mean age": lambda row: f"{row.mean_age:.1f}",
    "max age": lambda row: f"{row.max_age:.0f}",
}


def cache_error(
    model: options.Model = "tiny",
    revision: options.Revision = None,
    scheduler: options.Scheduler = None,
    cache: options.Caches = None,
    task: Annotated[
        str | None,
        Option(help="Held-out problems of a task.", show_default="arithmetic, unless --prompts"),
    ] = None,
    prompts: options.Prompts = None,
    limit: Annotated[int, Option(help="Prompts at most.")] = 20,
    batch_size: options.Together = 10,
    output: Annotated[
        Path | None,
        Option(help="FILE.csv with all figures, or FILE.md with the table.", show_default="none"),
    ] = None,
    passes: Annotated[
        Path | None,
        Option(help="FILE.csv with a line for each pass of each prompt.", show_default="none"),
    ] = None,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    temperature: options.Temperature = None,
    seed: options.Seed = None,
    settings: options.Set = None,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    as_json: options.Json = False,
) -> None:
    """Compares each pass of a cached decoding with an exact one on the same canvas.

    dllm cache-error -c prefix -c dual --limit 20 --output errors.csv
    """
    _check(output, "output", ".csv", ".md")
    _check(passes, "passes", ".csv")
    subject = _subject(task, prompts, limit)
    loaded = load_model(model, dtype, placed(device, device_map, revision, adapter))
    chosen = collect(settings, max_new_tokens, block_length, temperature, seed, scheduler=scheduler)
    resolved = resolve(loaded.defaults, None, {**chosen, "cache": "none"})
    run = CacheErrorRun(loaded, subject.prompts, resolved, batch_size)
    _Job(run, subject, _chosen(run, cache), output, passes, as_json).measure()


@dataclass(frozen=True)
class Subject:
    """What is decoded, and how it is judged if it is a task."""

    name: str
    prompts: Sequence[str]
    task: Task | None = None
    problems: Sequence[Problem] = ()

    def right(self, parts: Sequence[Observed]) -> float | None:
        """Returns the part of the answers that are right; None where nobody knows."""
        texts = [text for part in parts for text in part.output.texts or ()]
        if self.task is None or not texts:
            return None
        pairs = zip(self.problems, texts, strict=True)
        return sum(self.task.is_correct(problem, text) for problem, text in pairs) / len(texts)


@dataclass(frozen=True)
class _Job:
    """All caches on the same prompts, and where the report goes."""

    run: CacheErrorRun
    subject: Subject
    caches: Sequence[str]
    output: Path | None  # the table
    passes: Path | None  # a line for each pass
    as_json: bool

    def measure(self) -> None:
        """Measures and reports; on Ctrl-C, or without memory, the caches that are done."""
        errors: list[CacheError] = []
        cut: BaseException | None = None
        try:
            self._measure(errors)
        except (KeyboardInterrupt, NotEnoughMemoryError) as error:
            cut = error
        if errors:
            self._report(errors)
        if isinstance(cut, NotEnoughMemoryError):
            raise cut
        if cut is not None:
            say("interrupted: these are the caches that were done")
            raise typer.Exit(options.INTERRUPTED)

    def _measure(self, errors: list[CacheError]) -> None:
        with progress() as bars:
            bar = bars.add_task("no cache", total=self.run.num_batches, note="")
            references = list(bars.track(self.run.reference(), task_id=bar))
            for cache in self.caches:
                bar = bars.add_task(cache, total=self.run.num_batches, note="")
                parts: list[Observed] = []
                for part in self.run.observed(cache, references):
                    parts.append(part)
                    note = f"error {_short(float(part.entries.mean_error.mean()))}"
                    bars.update(bar, advance=1, note=note)
                summed = summarise(replace(self.run.settings, cache=cache), parts)
                errors.append(replace(summed, correct=self.subject.right(parts)))
                if self.passes is not None:
                    _write_passes(self.passes, summed.cache, parts, first=len(errors) == 1)

    def _report(self, errors: Sequence[CacheError]) -> None:
        run, settings = self.run, self.run.settings
        own = min(DEFAULT_BLOCK_LENGTH, settings.max_new_tokens)
        block = settings.block_length or run.model.spec.block_length or own
        title = (
            f"{self.subject.name}, {errors[0].scheduler}, {run.model.name}: {len(run.prompts)} "
            f"prompts, {settings.max_new_tokens} new tokens, blocks of {block}, "
            f"batch {run.batch_size}"
        )
        rows = [[cell(row) for cell in HEADS.values()] for row in errors]
        table = Table(title, list(HEADS), rows, LEGEND)
        path, records = self.output, [asdict(row) for row in errors]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with options.naming(path):
                if path.suffix == ".csv":
                    write_csv(path, records)
                else:
                    write_markdown(path, [f"{title}.", table.markdown(), LEGEND])
        if self.as_json:
            print(json.dumps({"title": title, "rows": records}))
        else:
            console = Terminal()
            console.print_table(_printed(table))
            console.print(LEGEND)


def _check(path: Path | None, name: str, *endings: str) -> None:
    if path is not None and path.suffix not in endings:
        raise ValueError(f"{name}={str(path)!r} must end in {' or '.join(endings)}")
    mark = "| cache |" if path is not None and path.suffix == ".md" else "mean_error"
    options.check_writable(path, f"--{name}", mark)


def _subject(task: str | None, prompts: Path | None, limit: int) -> Subject:
    """Returns what is decoded, short prompts first: a batch of one length has little padding."""
    if prompts is not None and task is not None:
        raise ValueError("give --prompts FILE or --task NAME, not both")
    if prompts is not None:
        if limit < 1:
            raise ValueError(f"limit={limit} must be at least 1")
        return Subject(str(prompts), sorted(read_texts(prompts, limit), key=len))
    chosen = find_task(task or "arithmetic")
    problems = sorted(chosen.take(limit), key=lambda problem: len(problem.prompt))
    return Subject(chosen.name, [problem.prompt for problem in problems], chosen, problems)


def _chosen(run: CacheErrorRun, names: Sequence[str] | None) -> list[str]:
    """Returns the caches to look at: those named, else all that the model allows."""
    if names:
        for cache in names:
            run.check(cache)
        return list(names)
    allowed = run.allowed()
    for name, reason in allowed.items():
        if reason is not None:
            say(f"left out: {name}: {reason}")
    return [name for name, reason in allowed.items() if reason is None]


def _printed(table: Table) -> RichTable:
    """Returns one row a cache; fits 80 columns."""
    shown = empty_table(table.title, padding=(0, 0, 0, 0))
    shown.add_column(table.heads[0])
    for head in table.heads[1:]:
        lines = head.replace("forwards", "for- wards").replace(" ", "\n")
        shown.add_column(lines, justify="right")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def _write_passes(path: Path, cache: str, parts: Sequence[Observed], *, first: bool) -> None:
    """Writes a line for each pass of each prompt, behind those of the caches before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "w" if first else "a"
    with options.naming(path), path.open(mode, encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        start = 0
        for number, part in enumerate(parts):
            if first and number == 0:
                writer.writerow(["cache", "prompt", *list(vars(part.entries))[1:]])
            for row, *figures in (record.values() for record in part.entries.records()):
                writer.writerow([cache, start + int(row), *figures])
            start += len(part.output.sequences)


def _short(value: float) -> str:
    """Returns a number in at most six characters, 0 only if it is exactly that."""
    if value == 0:
        return "0"
    return f"{value:.2g}" if value >= _SMALL else f"{value:.0e}"


def _part(value: float | None) -> str:
    """Returns a part in percent; 0 and 100 only if it is exactly that."""
    if value is None:
        return "-"
    return f"{100 * value:.0f}" if value in (0, 1) else f"{100 * value:.1f}"
