"""The cost of the requests of the lm-evaluation-harness: a JSON line each, and totals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dllm
from dllm import cache as caches
from dllm import schedulers
from dllm.decoding.speculation import verifiers
from dllm.eval.lm_eval.arguments import ArgumentError, Arguments
from dllm.eval.lm_eval.likelihood import Continuation, Score
from dllm.eval.run.results import append_lines, mend
from dllm.models.model import HostedModel
from dllm.output import GenerationOutput
from dllm.settings import Settings

FILE = "gen_stats.jsonl"
SUMMED = ("valid_tokens", "raw_tokens", "forwards", "row_forwards", "tokens_fed", "seconds")


def describe(model: HostedModel, settings: Settings, arguments: Arguments) -> dict[str, Any]:
    """Returns what decides the answers and their cost, as JSON-ready values.

    `settings` are those of requests that ask for nothing themselves.
    """
    verifier = settings.verifier
    described = {
        "version": dllm.__version__,
        "model": model.name,
        "dtype": str(model.dtype),
        "device": str(model.device),
        "scheduler": schedulers.registry.create(settings.scheduler).summary(),
        "cache": caches.registry.create(settings.cache).summary(),
        "verifier": None if verifier is None else verifiers.registry.create(verifier).summary(),
        "model_args": dict(arguments.settings),
        "batch_size": arguments.batch_size,
        "mc_num": arguments.mc_num,
        "is_check_greedy": arguments.is_check_greedy,
        "too_long": arguments.too_long,
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return {"run": hashlib.sha256(text.encode()).hexdigest()[:12], **json.loads(text)}


def stats_file(arguments: Arguments, folder: Path | None, rank: int) -> Path | None:
    """Returns the file that a process writes costs to, if any; each process has its own."""
    if arguments.stats is not None:
        path = Path(arguments.stats)
    elif folder is not None:
        path = folder / FILE
    else:
        return None
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


@dataclass
class Stats:
    """Adds up what requests cost; with a file, each batch is on the disk before the next runs."""

    described: Mapping[str, Any]  # whose `run` names the settings: several runs may share a file
    path: Path | None = None
    num_requests: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))

    def __post_init__(self) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            mend(self.path)
        except OSError as error:  # now rather than after the first batch
            raise ArgumentError(f"stats={str(self.path)!r} cannot be written: {error}") from error

    def generated(self, about: Sequence[Mapping[str, Any]], out: GenerationOutput) -> None:
        """Notes a batch; `about` names the request of each row."""
        share = 1 / len(about)
        lines = []
        for request, row in zip(about, out.metrics.rows, strict=True):
            cost = {
                "valid_tokens": row.valid_tokens,
                "raw_tokens": row.raw_tokens,
                "forwards": row.forwards,
                "row_forwards": row.row_forwards,
                "tokens_fed": out.metrics.tokens_fed * share,
                "seconds": out.metrics.seconds * share,
            }
            self.num_requests += 1
            for name, value in cost.items():
                self.sums[name] += value
            lines.append(
                {
                    "kind": "generate_until",
                    **request,
                    "prompt_tokens": row.prompt_tokens,
                    **cost,
                    "tokens_per_forward": row.tokens_per_forward,
                    "finish_reason": row.finish_reason,
                }
            )
        self.write(lines)

    def scored(self, about: Mapping[str, Any], given: Continuation, score: Score) -> None:
        """Notes a continuation that was scored."""
        counts = {"context_tokens": given.start, "target_tokens": len(given.tokens) - given.start}
        self.write([{"kind": "loglikelihood", **about, **counts, **asdict(score)}])

    @property
    def totals(self) -> dict[str, float]:
        """The sums over all generated requests of this process, and their ratios."""
        sums = self.sums
        return {
            "requests": self.num_requests,
            **sums,
            "tokens_per_forward": _ratio(sums["valid_tokens"], sums["forwards"]),
            "raw_tokens_per_forward": _ratio(sums["raw_tokens"], sums["forwards"]),
            "tokens_per_second": _ratio(sums["valid_tokens"], sums["seconds"]),
        }

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends lines and waits until they are on the disk."""
        if self.path is not None:
            append_lines(self.path, ({"run": self.described["run"], **line} for line in lines))


def _ratio(count: float, total: float) -> float:
    return count / total if total else 0.0
