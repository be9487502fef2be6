"""What no verifier may change."""

from __future__ import annotations

from typing import Any

import torch

import dllm
from dllm.decoding.speculation import verifiers

SLOTS: dict[str, Any] = {"max_new_tokens": 16, "statistics_dtype": torch.float64, "seed": 5}


OF_STEPS = [
    name
    for name in verifiers.registry.names()
    if issubclass(verifiers.registry.get(name), verifiers.StepVerifier)
]


def base_of(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of the run whose tokens a verifier of settings gives."""
    return {**options, "verifier": None, **verifiers.registry.create(options["verifier"]).base}


def check_unchanged(model: Any, prompts: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Runs settings without and with their verifier; fails where these differ in anything."""
    base = dllm.generate(model, prompts, **base_of(options))
    fast = dllm.generate(model, prompts, **options)
    assert fast.sequences == base.sequences
    assert torch.equal(fast.trace.commit_step, base.trace.commit_step)
    torch.testing.assert_close(fast.trace.confidence, base.trace.confidence, equal_nan=True)
    verifier = verifiers.registry.create(options["verifier"])
    most, guarded = verifier.num_variants, getattr(verifier, "margin_guard", 0) > 0
    drafts = fast.metrics.forwards.get("draft", 0)
    assert fast.metrics.num_forwards - drafts <= (1 + guarded) * base.metrics.num_forwards
    for row, (one, other) in enumerate(zip(base.metrics.rows, fast.metrics.rows, strict=True)):
        assert list(fast.trace.replay(row)) == list(base.trace.replay(row))
        assert (one.finish_reason, one.raw_tokens) == (other.finish_reason, other.raw_tokens)
        steps = sum(count * place for place, count in enumerate(other.accepted, start=1))
        assert steps == one.forwards
        assert sum(other.accepted) == other.forwards or guarded or drafts
        assert other.forwards <= other.row_forwards <= most * other.forwards
        if getattr(verifier, "adaptive", False) and not guarded:
            assert other.row_forwards <= 2 * one.forwards + 2
    return base, fast
