"""C++ programs: compiled and run inside the sandbox, where both are processes of a Python program.

As in the published checker of eth-sri/constrained-diffusion: C++17 by g++, and right is what ends
with 0. Unlike there a program that leaves by itself (`exit`) before `main` returns is not right.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Any, Literal

from dllm.eval.sandbox import Limits, Sandbox, SandboxError, Verdict, open_sandbox

COMPILERS = ("g++", "clang++")
STANDARD = "c++17"
_COMPILING, _RUNNING = 30, 10  # seconds of the clock
_LIMITS = Limits(cpu_seconds=_COMPILING, seconds=float(_COMPILING + _RUNNING + 5))
_KNOWN_GOOD = """
#include <algorithm>
#include <cassert>
#include <string>
#include <vector>
int main() {
    std::vector<std::string> words = {"b", "a"};
    std::sort(words.begin(), words.end());
    assert(words[0] == "a");
}
"""
# What the program calls in place of the C library's functions: leaving early has a code of its own.
_LEFT = 97
_LEAVING = ("exit", "_exit", "_Exit", "quick_exit")
_WRAPPERS = "\n".join(
    [
        'extern "C" { [[noreturn]] void __real__exit(int);',
        *(
            f"[[noreturn]] void __wrap_{name}(int) {{ __real__exit({_LEFT}); }}"
            for name in _LEAVING
        ),
        "}",
    ]
)
# The Python program. Nobody may look into it: what says that it passed lies on its stack, and what
# it starts is of the same user.
_DRIVER = """
import ctypes, os, signal, subprocess
class CompileError(Exception): pass
class Crash(Exception): pass
class Slow(Exception): pass
asked = {asked!r}
ctypes.CDLL(None).prctl(4, 0)
for name, text in asked["files"].items():
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
paths = dict(PATH=asked["path"], TMPDIR=os.getcwd(), HOME=os.getcwd(), LC_ALL="C.UTF-8")
def run(command, seconds, environment):
    with open("errors", "wb") as errors:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=errors, env=environment, timeout=seconds).returncode
    with open("errors", encoding="utf-8", errors="replace") as errors:
        return code, errors.read(1 << 16)
try:
    code, said = run(asked["command"], asked["compiling"], paths)
except subprocess.TimeoutExpired:
    raise Slow("the compiler was not through in time") from None
if code:
    lines = said.splitlines()
    first = [line for line in lines if "error:" in line or "undefined reference" in line]
    raise CompileError("\\n".join(first or lines))
try:
    code, said = run(["./program"], asked["running"], {{}})
except subprocess.TimeoutExpired:
    raise TimeoutError("the tests were not over in time") from None
assert code != -signal.SIGABRT, said
if code == asked["left"]:
    raise SystemExit("it left before main returned")
if code:
    raise Crash(f"signal {{-code}}" if code < 0 else f"main returned {{code}}: {{said}}")
"""

Ending = Literal[
    "passed",
    "not compiled",
    "assertion",  # or another call of abort
    "crashed",  # by a signal, or main returned another code than 0
    "exited",  # before main returned
    "timeout",  # of the compiler or of the tests
    "memory",
    "killed",
]
_ENDINGS: dict[str, Ending] = {
    "CompileError": "not compiled",
    "Crash": "crashed",
    "Slow": "timeout",
    "TimeoutError": "timeout",
}
# What the Python program raises once there is a program; of any other end it is not known.
_COMPILED = ("AssertionError", "SystemExit", "Crash", "TimeoutError")


@dataclass(frozen=True)
class Outcome:
    """How far a program came."""

    compiles: bool
    ending: Ending
    error: str
    level: str  # of the sandbox

    @property
    def passed(self) -> bool:
        """Whether its tests pass."""
        return self.ending == "passed"


@dataclass(frozen=True)
class Compiler:
    """Compiles and runs programs in a sandbox; `open_compiler` finds one that works."""

    sandbox: Sandbox
    path: str

    def run(self, program: str) -> Outcome:
        """Returns how a program ended; once more after a time-out, as machines get busy."""
        outcome = self._run(program)
        return self._run(program) if outcome.ending == "timeout" else outcome

    def _run(self, program: str) -> Outcome:
        wraps = [f"-Wl,--wrap={name}" for name in _LEAVING]
        files = {"program.cpp": program, "leaving.cpp": _WRAPPERS}
        asked: dict[str, Any] = {
            "files": files,
            "command": [self.path, f"-std={STANDARD}", *wraps, "-o", "program", *files],
            "path": "/usr/bin:/bin",  # of the assembler and the linker
            "compiling": _COMPILING,
            "running": _RUNNING,
            "left": _LEFT,
        }
        return _outcome(self.sandbox.run(_DRIVER.format(asked=asked)))


def open_compiler() -> Compiler:
    """Returns the first known compiler on PATH with a sandbox that a C++ program passes in.

    Raises ValueError where there is no compiler, SandboxError where no sandbox runs it.
    """
    path = next(filter(None, map(shutil.which, COMPILERS)), None)
    if path is None:
        raise ValueError(
            f"C++ is scored by compiling it, and there is neither {' nor '.join(COMPILERS)} on "
            "PATH: install one (apt-get install g++), or leave out --run-code, which writes the "
            "answers; the same command with it scores them later"
        )
    sandbox = open_sandbox()
    if sandbox.level == "limits":
        raise SandboxError(
            "C++ is compiled and run by processes of their own, of which sandbox level 'limits', "
            "the only one here, allows none: allow user namespaces, or score on another machine"
        )
    compiler = Compiler(replace(sandbox, limits=_LIMITS), path)
    outcome = compiler.run(_KNOWN_GOOD)
    if not outcome.passed:
        raise SandboxError(
            f"{path} does not work in the sandbox (level {sandbox.level!r}), where a harmless "
            f"program ends with {outcome.ending!r}: {outcome.error}"
        )
    return compiler


def _outcome(verdict: Verdict) -> Outcome:
    """Returns what a verdict on the Python program says of the C++ one."""
    name, _, error = verdict.detail.partition(": ")
    ending: Any = verdict.kind
    if verdict.kind == "exception":
        # Anything else that the Python program raises is a program that took what it needs.
        ending, error = _ENDINGS.get(name, "crashed"), error if name in _ENDINGS else verdict.detail
    compiles = verdict.passed or name in _COMPILED
    return Outcome(compiles, ending, error, verdict.level)
