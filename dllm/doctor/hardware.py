"""Looks at processors, threads, memory and the attention kernels that run on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm.decoding.memory_limits import available, readable
from dllm.doctor.finding import Finding, failure, ok, warning

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# Of the processor: what makes bfloat16 fast, and what else is worth showing.
BF16 = ("amx_bf16", "avx512_bf16")
SHOWN = ("avx2", "avx512_f", *BF16)
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of a period, or "max"


def device(where: torch.device) -> Iterator[Finding]:
    """Yields the device that is examined."""
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else ""
    yield ok("device", f"{where} {name}".strip())
    if where.type == "cpu" and torch.version.cuda and not torch.cuda.is_available():
        text = f"torch is built for CUDA {torch.version.cuda} but finds no device"
        yield warning("cuda", text, "see whether `nvidia-smi` runs and fits the driver's version")


def cuda() -> Iterator[Finding]:
    """Yields each GPU with its memory."""
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        text = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        yield ok(f"cuda:{index}", f"{text}, {readable(free)} of {readable(total)} free")
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            yield warning(f"cuda:{index}", "no bfloat16", "give --dtype float16 or float32")


def processor(where: torch.device) -> Iterator[Finding]:
    """Yields what the CPU has for matrix products."""
    has = capabilities()
    known = [name for name in SHOWN if has.get(name)]
    listed = f" ({', '.join(known)})" if known else ""
    level = torch.backends.cpu.get_cpu_capability()
    text = f"{has.get('cpu_name', 'CPU')}, torch uses {level}{listed}"
    if where.type == "cpu" and level == "DEFAULT":
        yield warning("processor", f"{text}: no vector units that torch knows, so slow")
    else:
        yield ok("processor", text)


def fast_bfloat16(where: torch.device) -> bool | None:
    """Returns whether a device multiplies bfloat16 natively; None where torch does not say."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = capabilities()
    return any(has.get(name) for name in BF16) if where.type == "cpu" and has else None


def capabilities() -> Mapping[str, Any]:
    """Returns torch's list of the CPU's features; empty before the version that has it."""
    listed = getattr(torch.cpu, "get_capabilities", None)
    return {} if listed is None else listed()


def threads(where: torch.device) -> Iterator[Finding]:
    """Yields threads against cores, and whether they spin while they wait."""
    count, cores = torch.get_num_threads(), usable_cores()
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    text = f"{count} for {cores} usable cores, OMP_WAIT_POLICY {policy}"
    if where.type != "cpu":
        yield ok("threads", text)
    elif count > cores:
        text = f"{text}: more threads than cores wait for each other"
        yield warning("threads", text, f"export OMP_NUM_THREADS={max(int(cores), 1)}")
    elif count > 1 and policy.lower() != "passive":
        slow = "threads that spin while they wait make small models several times slower"
        text = f"{text}: {slow} where cores are shared"
        yield warning("threads", text, "export OMP_WAIT_POLICY=passive")
    else:
        yield ok("threads", text)


def usable_cores() -> float:
    """Returns the cores that this process may use, a container's share of them included."""
    known = hasattr(os, "sched_getaffinity")
    cores = float(len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)
    if QUOTA.is_file():
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        cores = cores if quota == "max" else min(cores, int(quota) / int(period))
    return cores


def memory(where: torch.device) -> Iterator[Finding]:
    """Yields what can still be had on the device."""
    free = available(where)
    text = "not known" if free is None else f"{readable(free)} free on {where}"
    yield ok("memory", text)


def attention(where: torch.device) -> Iterator[Finding]:
    """Yields which kernels of attention run here, by running each on a few tokens."""
    running = {masked: _kernels(where, masked) for masked in (False, True)}
    plain, masked = (", ".join(running[kind]) or "none" for kind in (False, True))
    text = f"{plain}; with a mask, as in batches of mixed lengths: {masked}"
    if not running[True]:
        yield failure("attention", text, "install a build of torch for this device")
    elif where.type == "cuda" and running[True] == ["math"]:
        yield warning("attention", text, "masked passes are slow: batch prompts of equal length")
    else:
        yield ok("attention", text)


def _kernels(where: torch.device, masked: bool) -> list[str]:
    dtype = torch.float32 if where.type == "cpu" else torch.float16
    query = torch.ones(2, 4, 16, 64, device=where, dtype=dtype)
    mask = torch.ones(2, 1, 1, 16, dtype=torch.bool, device=where) if masked else None
    running = []
    for name, kernel in KERNELS.items():
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # each says at length why it does not run
            try:
                F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
            except RuntimeError:
                continue
        running.append(name)
    return running
