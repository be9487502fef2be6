"""Examines a machine, and a checkpoint without loading its weights, for what is slow or fails."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from dllm.doctor import checkpoint, hardware, software
from dllm.doctor.checkpoint import LocalCheckpoint
from dllm.doctor.finding import Check, Finding, run
from dllm.models.loading.placement import parse_device


def examine(model: str | None = None, device: str | None = None) -> Iterator[Finding]:
    """Yields all findings: of the machine, then of the model if one is named.

    Raises ValueError for a device that is not there; whatever else is wrong is a finding.
    """
    where = parse_device(device)
    yield from examine_machine(where)
    if model is not None:
        yield from examine_model(model, where)


def examine_machine(where: torch.device) -> Iterator[Finding]:
    """Yields what is found of software and hardware."""
    checks: list[tuple[str, Check]] = [
        ("python", software.python),
        ("packages", software.packages),
        ("extras", software.extras),
        ("device", partial(hardware.device, where)),
        ("cuda", hardware.cuda),
        ("processor", partial(hardware.processor, where)),
        ("threads", partial(hardware.threads, where)),
        ("memory", partial(hardware.memory, where)),
        ("attention", partial(hardware.attention, where)),
        ("triton", partial(software.triton, where)),
        ("torch.compile", partial(software.compiler, where)),
        ("sandbox", software.sandbox),
    ]
    yield from run(checks)


def examine_model(name: str, where: torch.device) -> Iterator[Finding]:
    """Yields what is found of "tiny", a checkpoint folder or a hub id that was downloaded."""
    named = LocalCheckpoint(name)
    checks: list[tuple[str, Check]] = [
        ("checkpoint", partial(checkpoint.folder, named)),
        ("architecture", partial(checkpoint.architecture, named)),
        ("tokenizer", partial(checkpoint.tokenizer, named)),
        ("chat template", partial(checkpoint.chat_template, named)),
        ("special tokens", partial(checkpoint.special_tokens, named)),
        ("defaults", partial(checkpoint.defaults, named)),
        ("weights", partial(checkpoint.files, named)),
        ("size", partial(checkpoint.size, named, where)),
        ("dtype", partial(checkpoint.dtype, named, where)),
        ("batch", partial(checkpoint.batch, named, where)),
    ]
    yield from run(checks)
