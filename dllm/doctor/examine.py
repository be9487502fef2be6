"""Examines a machine, and a checkpoint without loading a weight of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from dllm.doctor import fit, hardware, software
from dllm.doctor import model as checkpoints
from dllm.doctor import threads as doctor_threads
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
        ("threads", partial(doctor_threads.threads, where)),
        ("memory", partial(hardware.memory, where)),
        ("attention", partial(hardware.attention, where)),
        ("triton", partial(software.triton, where)),
        ("torch.compile", partial(software.compiler, where)),
        ("sandbox", software.sandbox),
    ]
    yield from run(checks)


def examine_model(name: str, where: torch.device) -> Iterator[Finding]:
    """Yields what is found of "tiny", a checkpoint folder or a hub id that was downloaded."""
    checkpoint = LocalCheckpoint(name)
    checks: list[tuple[str, Check]] = [
        ("checkpoint", partial(checkpoints.folder, checkpoint)),
        ("architecture", partial(checkpoints.architecture, checkpoint)),
        ("tokenizer", partial(checkpoints.tokenizer, checkpoint)),
        ("chat template", partial(checkpoints.chat_template, checkpoint)),
        ("special tokens", partial(checkpoints.special_tokens, checkpoint)),
        ("defaults", partial(checkpoints.defaults, checkpoint)),
        ("weights", partial(checkpoints.files, checkpoint)),
        ("size", partial(fit.size, checkpoint, where)),
        ("dtype", partial(fit.dtype, checkpoint, where)),
        ("batch", partial(fit.batch, checkpoint, where)),
    ]
    yield from run(checks)
