"""What the server did, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from dllm.serve.engine import Engine
from dllm.serve.job import Answer

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_RATES = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)


class Measured:
    """Counters of answers, and gauges that are read when somebody asks."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        """Begins at nothing; `labels` are shown as those of `target_info`."""
        self._registry = at = CollectorRegistry(target_info=None if labels is None else {**labels})
        self._answers = Counter("dllm_answers", "Answers, by their end.", ["reason"], registry=at)
        self._errors = Counter("dllm_errors", "Requests that failed.", ["kind"], registry=at)
        self._left = Counter("dllm_left", "Requests whose client did not wait.", registry=at)
        self._prompt = Counter("dllm_prompt_tokens", "Tokens of prompts.", registry=at)
        reused = "Columns of prompts that earlier rows had read."
        self._reused = Counter("dllm_reused_columns", reused, registry=at)
        self._tokens = Counter("dllm_answer_tokens", "Tokens of answers.", registry=at)
        self._forwards = Counter("dllm_row_forwards", "Forwards of each answer.", registry=at)
        queued, decoding = "Seconds before a seat.", "Seconds from seat to answer."
        self._queued = Histogram("dllm_queued_seconds", queued, buckets=_SECONDS, registry=at)
        self._decoding = Histogram("dllm_decoding_seconds", decoding, buckets=_SECONDS, registry=at)
        rate = "Tokens per forward of each answer."
        self._rate = Histogram("dllm_tokens_per_forward", rate, buckets=_RATES, registry=at)
        self._waiting = Gauge("dllm_waiting", "Answers without a seat.", registry=at)
        self._active = Gauge("dllm_active", "Answers that are decoded.", registry=at)
        self._passes = Gauge("dllm_passes", "Passes of the model so far.", registry=at)
        self._fed = Gauge("dllm_fed_columns", "Columns of a row that passes fed.", registry=at)
        held = "Bytes of keys and values that are kept of the last canvas."
        self._held = Gauge("dllm_prompt_memory_bytes", held, registry=at)

    def answered(self, answer: Answer) -> None:
        """Counts an answer."""
        self._answers.labels(answer.row.finish_reason).inc()
        self._prompt.inc(answer.row.prompt_tokens)
        self._reused.inc(answer.reused)
        self._tokens.inc(answer.row.valid_tokens)
        self._forwards.inc(answer.row.forwards)
        self._queued.observe(answer.queued_seconds)
        self._decoding.observe(answer.decoding_seconds)
        self._rate.observe(answer.row.tokens_per_forward)

    def refused(self, error: Exception) -> None:
        """Counts a request that failed."""
        self._errors.labels(type(error).__name__).inc()

    def left(self) -> None:
        """Counts a client that did not wait."""
        self._left.inc()

    def text(self, engine: Engine) -> tuple[bytes, str]:
        """Returns the figures and the type of their text."""
        self._read(engine)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def figures(self, engine: Engine) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Returns each figure by its name and its labels, in the order of their names."""
        self._read(engine)
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created") and sample.name != "target_info"
        }

    def _read(self, engine: Engine) -> None:
        self._waiting.set(engine.num_waiting)
        self._active.set(engine.num_active)
        self._passes.set(engine.counts.forwards)
        self._fed.set(engine.counts.fed)
        self._held.set(engine.memory.num_bytes)
