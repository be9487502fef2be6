"""What of a machine decides which ways to faster passes pay on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from dllm.models.memory import available

BF16 = ("amx_bf16", "avx512_bf16")  # of a CPU: either makes bfloat16 fast
FP16 = ("amx_fp16", "avx512_fp16")


@dataclass(frozen=True)
class Machine:
    """One device, and what is there beside it."""

    device: str  # "cpu", "cuda", ...
    emulates: tuple[torch.dtype, ...] = ()  # 16-bit dtypes for which it is known to have nothing
    packs: tuple[torch.dtype, ...] = ()  # dtypes whose weights its libraries lay out
    memory: int | None = None  # bytes that can still be had of it; None: not known
    compiler: bool = False  # whether torch.compile finds one


def machine_of(device: torch.device) -> Machine:
    """Returns what is found of a device; nothing is run on it."""
    emulates = tuple(d for d in (torch.bfloat16, torch.float16) if multiplies(device, d) is False)
    cpu = device.type == "cpu"
    packs = [torch.float32] if cpu and has_mkl() else []
    if cpu and runs_bfloat16():
        packs.append(torch.bfloat16)
    there = shutil.which("g++") or shutil.which("clang++") if cpu else find_spec("triton")
    return Machine(device.type, emulates, tuple(packs), available(device), bool(there))


def multiplies(device: torch.device, dtype: torch.dtype) -> bool | None:
    """Returns whether a device has arithmetic for a 16-bit dtype; None where torch does not say."""
    if device.type == "cuda":
        fp16 = dtype == torch.float16
        return fp16 or bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = capabilities()
    if device.type != "cpu" or has.get("architecture") != "x86_64":
        return None
    if dtype == torch.bfloat16:
        return any(has.get(name) for name in BF16) and runs_bfloat16()
    return any(has.get(name) for name in FP16)


def capabilities() -> Mapping[str, Any]:
    """Returns torch's list of the CPU's features; empty before the version that has it."""
    listed = getattr(torch.cpu, "get_capabilities", None)
    return {} if listed is None else listed()


def has_mkl() -> bool:
    """Returns whether torch comes with MKL, which lays out float32 weights."""
    return hasattr(torch.ops.mkl, "_mkl_linear") and torch.backends.mkl.is_available()


def runs_bfloat16() -> bool:
    """Returns whether oneDNN has products of bfloat16 weights for this CPU, native or not."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and known is not None and bool(known())
