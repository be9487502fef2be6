"""`dllm cache-error`: what caches change of a decoding, pass by pass, and what they save."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dllm import load
from dllm.cli.error_table import (
    LEGEND,
    Destination,
    Subject,
    error_table,
    heading,
    said,
    write,
    write_passes,
)
from dllm.cli.options import (
    BlockOption,
    CachesOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    NewTokensOption,
    SchedulerOption,
    SeedOption,
    SetOption,
    TemperatureOption,
    given,
)
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.compare.cache_error_run import CacheError, CacheErrorRun, Observed, summarise
from dllm.eval.tasks import find_task
from dllm.output import GenerationOutput
from dllm.settings import resolve
from dllm.training.learn2pd_examples import read_prompts

INTERRUPTED = 130


def cache_error(
    model: ModelOption = "tiny",
    scheduler: SchedulerOption = None,
    cache: CachesOption = None,
    task: Annotated[
        str | None, typer.Option(help="Held-out problems of a task; arithmetic unless given.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='Text, a prompt a line, or .jsonl with "prompt".')
    ] = None,
    limit: Annotated[int, typer.Option(help="Prompts at most.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together.")] = 10,
    output: Annotated[
        Path | None, typer.Option(help="FILE.csv with all figures, or FILE.md with the table.")
    ] = None,
    passes: Annotated[
        Path | None, typer.Option(help="FILE.csv with a line for each pass of each prompt.")
    ] = None,
    max_new_tokens: NewTokensOption = None,
    block_length: BlockOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compares each pass of a cached decoding with an exact one on the same canvas.

    dllm cache-error -c prefix -c dual --limit 20 --output errors.csv
    """
    to = Destination(output, passes, as_json)
    subject = _subject(task, prompts, limit)
    loaded = load(model, dtype=dtype, device=device)
    options = given(
        settings,
        scheduler=scheduler,
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        temperature=temperature,
        seed=seed,
    )
    resolved = resolve(loaded.defaults, None, {**options, "cache": "none"})
    audit = CacheErrorRun(loaded, subject.prompts, resolved, batch_size)
    _Job(audit, subject, _chosen(audit, cache), to).run()


@dataclass(frozen=True)
class _Job:
    """All caches on the same prompts, and where the report goes."""

    audit: CacheErrorRun
    subject: Subject
    caches: Sequence[str]
    to: Destination

    def run(self) -> None:
        """Measures and reports; on Ctrl-C, or without memory, the caches that are done."""
        found: list[CacheError] = []
        stopped, failed = False, None
        try:
            self._measure(found)
        except KeyboardInterrupt:
            stopped = True
        except NotEnoughMemoryError as error:
            failed = error
        if found:
            self._report(found)
        if failed is not None:
            raise failed
        if stopped:
            Console(stderr=True).print("interrupted: these are the caches that were done")
            raise typer.Exit(INTERRUPTED)

    def _measure(self, found: list[CacheError]) -> None:
        total = self.audit.num_batches
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
        error = TextColumn("{task.fields[error]}")
        console = Console(stderr=True)
        with Progress(*columns, error, TimeRemainingColumn(), console=console) as progress:
            bar = progress.add_task("no cache", total=total, error="")
            references: list[GenerationOutput] = []
            for reference in self.audit.reference():
                references.append(reference)
                progress.advance(bar)
            for cache in self.caches:
                bar = progress.add_task(escape(cache), total=total, error="")
                parts: list[Observed] = []
                for part in self.audit.observed(cache, references):
                    parts.append(part)
                    progress.update(bar, advance=1, error=said(part))
                summed = summarise(replace(self.audit.settings, cache=cache), parts)
                found.append(replace(summed, correct=self.subject.right(parts)))
                if self.to.passes is not None:
                    write_passes(self.to.passes, summed.cache, parts, first=len(found) == 1)

    def _report(self, found: Sequence[CacheError]) -> None:
        title = f"{self.subject.name}, {found[0].scheduler}, {heading(self.audit)}"
        if self.to.output is not None:
            write(self.to.output, title, found)
        if self.to.as_json:
            print(json.dumps({"title": title, "rows": [asdict(row) for row in found]}))
            return
        Console(highlight=False).print(error_table(title, found), LEGEND)


def _subject(task: str | None, prompts: Path | None, limit: int) -> Subject:
    """Returns what is decoded, short prompts first: a batch of one length has little padding."""
    if prompts is not None and task is not None:
        raise ValueError("give --prompts FILE or --task NAME, not both")
    if prompts is not None:
        if limit < 1:
            raise ValueError(f"limit={limit} must be at least 1")
        texts = sorted(read_prompts(prompts, limit), key=len)
        return Subject(str(prompts), tuple(texts))
    chosen = find_task(task or "arithmetic")
    problems = sorted(chosen.take(limit), key=lambda problem: len(problem.prompt))
    return Subject(chosen.name, tuple(p.prompt for p in problems), chosen, tuple(problems))


def _chosen(audit: CacheErrorRun, given: Sequence[str] | None) -> list[str]:
    """Returns the caches to look at: those given, else all that the model allows."""
    if given:
        for cache in given:
            audit.check(cache)
        return list(given)
    allowed = audit.allowed()
    for name, reason in allowed.items():
        if reason is not None:
            said = f"left out: {name}: {reason}"
            Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
    return [name for name, reason in allowed.items() if reason is None]
