"""Examines a machine, and a checkpoint without loading its weights, for what is slow or fails."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from dllm.doctor import checkpoint, machine
from dllm.doctor.checkpoint import LocalCheckpoint
from dllm.doctor.finding import Check, Finding, run
from dllm.models.loading.folder import Source
from dllm.models.loading.weights import parse_device


def examine(
    model: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
) -> Iterator[Finding]:
    """Yields all findings: of the machine, then of the model if one is named.

    Raises ValueError for a device that is not there, and for an adapter without its model; whatever
    else is wrong is a finding.
    """
    if adapter is not None and model is None:
        raise ValueError(f"adapter={adapter!r}: name the model that it is of")
    where = parse_device(device)
    yield from examine_machine(where)
    if model is not None:
        yield from examine_model(model, where, revision, adapter)


def examine_machine(where: torch.device) -> Iterator[Finding]:
    """Yields what is found of software and hardware."""
    checks: list[tuple[str, Check]] = [
        ("python", machine.python),
        ("packages", machine.packages),
        ("extras", machine.extras),
        ("device", partial(machine.device, where)),
        ("cuda", machine.cuda),
        ("processor", partial(machine.processor, where)),
        ("threads", partial(machine.threads, where)),
        ("memory", partial(machine.memory, where)),
        ("attention", partial(machine.attention, where)),
        ("triton", partial(machine.triton, where)),
        ("torch.compile", partial(machine.compiler, where)),
        ("sandbox", machine.sandbox),
    ]
    yield from run(checks)


def examine_model(
    name: str, where: torch.device, revision: str | None = None, adapter: str | None = None
) -> Iterator[Finding]:
    """Yields what is found of "tiny", a checkpoint folder or a hub id that was downloaded."""
    named = LocalCheckpoint(name, Source(revision))
    checks: list[tuple[str, Check]] = [
        ("checkpoint", partial(checkpoint.folder, named)),
        ("architecture", partial(checkpoint.foreign, named)),
    ]
    if named.is_foreign:
        yield from run(checks)
        return
    checks = [
        ("checkpoint", partial(checkpoint.folder, named)),
        ("architecture", partial(checkpoint.architecture, named)),
        ("tokenizer", partial(checkpoint.tokenizer, named)),
        ("chat template", partial(checkpoint.chat_template, named)),
        ("special tokens", partial(checkpoint.special_tokens, named)),
        ("defaults", partial(checkpoint.defaults, named)),
        ("weights", partial(checkpoint.files, named)),
        ("size", partial(checkpoint.size, named, where)),
        ("memory of weights", partial(checkpoint.narrower, named, where)),
        ("dtype", partial(checkpoint.dtype, named, where)),
        ("batch", partial(checkpoint.batch, named, where)),
        ("caches", partial(checkpoint.cache_policies, named)),
        ("verifiers", partial(checkpoint.verifying, named)),
        ("speed", partial(checkpoint.speed, named, where)),
        ("speed='auto'", partial(checkpoint.auto, named, where)),
    ]
    if adapter is not None:
        checks.append(("adapter", partial(checkpoint.adapter, named, adapter)))
    yield from run(checks)
