"""Looks at a machine: Python and its packages, processors, memory, kernels and the sandbox."""

from __future__ import annotations

import importlib.util
import os
import platform
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm.decoding.memory_limits import available, readable
from dllm.doctor.finding import Finding, failure, ok, warning
from dllm.eval.sandbox import SandboxError, open_sandbox
from dllm.models.speed.machine import BF16, capabilities

SHOWN = ("torch", "transformers", "accelerate")  # whose version is shown even if it is right
FOR_DEVELOPERS = ("dev", "docs")  # extras

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# Of the processor, worth showing.
FEATURES = ("avx2", "avx512_f", *BF16)
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
    known = [name for name in FEATURES if has.get(name)]
    listed = f" ({', '.join(known)})" if known else ""
    level = torch.backends.cpu.get_cpu_capability()
    text = f"{has.get('cpu_name', 'CPU')}, torch uses {level}{listed}"
    if where.type == "cpu" and level == "DEFAULT":
        yield warning("processor", f"{text}: no vector units that torch knows, so slow")
    else:
        yield ok("processor", text)


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


def python() -> Iterator[Finding]:
    """Yields the interpreter."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wanted = SpecifierSet(metadata.metadata("dllm")["Requires-Python"])
    if wanted.contains(platform.python_version(), prereleases=True):
        yield ok("python", text)
    else:
        yield failure("python", f"{text}; needed: {wanted}", "install another Python")


def packages() -> Iterator[Finding]:
    """Yields the packages that are needed: a few in any case, others if they do not suit."""
    for needed in _requirements(None):
        version, wanted = _version(needed.name), f"{needed.name}{needed.specifier}"
        if not _met(needed):
            text = f"{version}; needed: {wanted}" if version else "not installed"
            yield failure(needed.name, text, f"pip install '{wanted}'")
        elif needed.name in SHOWN:
            yield ok(needed.name, f"{version} (needed: {needed.specifier})")


def extras() -> Iterator[Finding]:
    """Yields what may be installed beside, which few commands need."""
    names = metadata.metadata("dllm").get_all("Provides-Extra") or []
    for extra in sorted(set(names) - {*FOR_DEVELOPERS}):
        lacking = [f"{n.name}{n.specifier}" for n in _requirements(extra) if not _met(n)]
        state = f"without {', '.join(lacking)}: pip install 'dllm[{extra}]'" if lacking else "there"
        yield ok(f"extra {extra}", state)


def triton(device: torch.device) -> Iterator[Finding]:
    """Yields triton, which torch.compile needs on a GPU."""
    if importlib.util.find_spec("triton") is not None:
        yield ok("triton", _version("triton") or "there")
    elif device.type == "cuda":
        text = "not installed, so torch.compile does not work"
        yield warning("triton", text, "pip install triton")
    else:
        yield ok("triton", f"not installed, not needed on {device.type}")


def compiler(device: torch.device) -> Iterator[Finding]:
    """Yields whether torch.compile works, by compiling a function of one line."""
    try:
        compiled = torch.compile(lambda x: x * 2 + 1)
        right = bool((compiled(torch.ones(4, device=device)) == 3).all())
        fault = "" if right else "it computes something else"
    except Exception as error:  # noqa: BLE001 it fails in many ways: compiler, headers, triton
        fault = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    if fault:
        needed = "a C++ compiler" if device.type == "cpu" else "triton and a C compiler"
        text = f'does not work ({fault}), so speed="compiled" does not either'
        yield warning("torch.compile", text, f"install {needed}")
    else:
        yield ok("torch.compile", 'works: speed="compiled" uses it, and so does training')


def sandbox() -> Iterator[Finding]:
    """Yields how well model-written code would be shut in."""
    try:
        level = open_sandbox().level
    except SandboxError as error:
        yield warning("sandbox", str(error), "score HumanEval on another machine")
        return
    if level == "limits":
        text = "level limits: model-written code could read what every user may, or this one"
        yield warning("sandbox", text, "allow unprivileged user namespaces for a better level")
    else:
        yield ok("sandbox", f"level {level}")


def _requirements(extra: str | None) -> list[Requirement]:
    """Returns what the installed project needs, or what one of its extras adds."""
    wanted = []
    for needed in map(Requirement, metadata.requires("dllm") or []):
        always = needed.marker is None or needed.marker.evaluate({"extra": ""})
        within = needed.marker is None or needed.marker.evaluate({"extra": extra or ""})
        if within and always == (extra is None):
            wanted.append(needed)
    return wanted


def _met(needed: Requirement) -> bool:
    version = _version(needed.name)
    return version is not None and needed.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
