"""`dllm demo`: the trade-off that this toolkit is about, on the embedded model."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from dllm import load
from dllm.cli import options
from dllm.cli.shown.alone import measure_runs
from dllm.eval.run.run import Run
from dllm.eval.tasks import find_task
from dllm.settings import resolve

# One token a step, fixed quotas, the adaptive rules, everything at once; then caches.
COMPARED = (
    ("fixed_quota", "none"),
    ("fixed_quota:steps=16", "none"),
    ("dream:entropy", "none"),
    ("threshold:0.95", "none"),
    ("threshold:0.9", "none"),
    ("threshold:0.7", "none"),
    ("factor:1.0", "none"),
    ("threshold:0", "none"),
    ("threshold:0.9", "prefix"),
    ("threshold:0.9", "dual"),
)


def demo(
    limit: Annotated[int, Option(help="Word problems for each method.")] = 100,
    batch_size: options.Together = 50,
    as_json: options.Json = False,
) -> None:
    """Decodes word problems with several schedulers and caches, offline, in a minute or two."""
    task, model = find_task("arithmetic"), load("tiny")
    runs = []
    for scheduler, cache in COMPARED:
        settings = resolve(model.defaults, None, {"scheduler": scheduler, "cache": cache})
        runs.append(Run(model, task, settings, batch_size))
    measure_runs(runs, task.take(limit), None, as_json)
