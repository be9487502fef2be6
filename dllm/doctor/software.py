"""Looks at Python, the packages, the compiler and the sandbox."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dllm.doctor.finding import Finding, failure, ok, warning
from dllm.eval.sandbox import SandboxError, open_sandbox

SHOWN = ("torch", "transformers", "accelerate")  # whose version is shown even if it is right
FOR_DEVELOPERS = ("dev",)  # extras


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
        version = _version(needed.name)
        subject, wanted = needed.name, f"{needed.name}{needed.specifier}"
        if version is None:
            yield failure(subject, "not installed", f"pip install '{wanted}'")
        elif not needed.specifier.contains(version, prereleases=True):
            yield failure(subject, f"{version}; needed: {wanted}", f"pip install '{wanted}'")
        elif subject in SHOWN:
            yield ok(subject, f"{version} (needed: {needed.specifier})")


def extras() -> Iterator[Finding]:
    """Yields what may be installed beside, which few commands need."""
    names = metadata.metadata("dllm").get_all("Provides-Extra") or []
    for extra in sorted(set(names) - {*FOR_DEVELOPERS}):
        lacking = []
        for needed in _requirements(extra):
            version = _version(needed.name)
            if version is None or not needed.specifier.contains(version, prereleases=True):
                lacking.append(f"{needed.name}{needed.specifier}")
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
        compiled = torch.compile(_line)
        right = bool((compiled(torch.ones(4, device=device)) == 3).all())
        fault = "" if right else "it computes something else"
    except Exception as error:  # noqa: BLE001 it fails in many ways: compiler, headers, triton
        fault = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    if fault:
        needed = "a C++ compiler" if device.type == "cpu" else "triton and a C compiler"
        text = f"does not work ({fault}); only training uses it"
        yield warning("torch.compile", text, f"install {needed}")
    else:
        yield ok("torch.compile", "works; only training uses it")


def sandbox() -> Iterator[Finding]:
    """Yields how well model-written code would be shut in."""
    try:
        level = open_sandbox().level
    except SandboxError as error:
        yield warning("sandbox", str(error), "score HumanEval on another machine")
        return
    if level == "limits":
        text = "level limits: model-written code could use the network and this user's files"
        yield warning("sandbox", text, "run `dllm eval --run-code` as a user who owns nothing")
    else:
        yield ok("sandbox", f"level {level}")


def _line(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def _requirements(extra: str | None) -> list[Requirement]:
    """Returns what the installed project needs, or what one of its extras adds."""
    wanted = []
    for text in metadata.requires("dllm") or []:
        needed = Requirement(text)
        always = needed.marker is None or needed.marker.evaluate({"extra": ""})
        within = needed.marker is None or needed.marker.evaluate({"extra": extra or ""})
        if within and always == (extra is None):
            wanted.append(needed)
    return wanted


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
