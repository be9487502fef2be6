"""Plants each fault of `faults.py` into a copy and runs the tests that must catch it.

    python -m tests.mutants [--list] [--only NAME ...]

Exits with 1 if a fault survived, or if the text that it changes is no longer found once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

from tests.mutants.faults import FAULTS, Fault, occurrences
from tests.support import ROOT

LIMIT = 300  # seconds for the tests of one fault
NEEDED = (
    "dllm",
    "schedulers",
    "cache",
    "constraints",
    "eval",
    "tests",
    "pyproject.toml",
    "README.md",
    "docs",
)
FAILED, NO_TESTS = 1, (2, 3, 4, 5)  # what pytest exits with


def copied(folder: Path) -> Path:
    """Returns a copy of what tests need; the links inside `dllm` stay links."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in NEEDED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    return folder


def outcome(fault: Fault, copy: Path) -> str:
    """Returns what became of a fault: caught, survived, or why neither can be said."""
    if occurrences(fault) != 1:
        return f"its text occurs {occurrences(fault)} times in {fault.file}"
    path = copy / fault.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(fault.old, fault.new), encoding="utf-8")
    try:
        code, said = run_tests(fault.tests, copy, LIMIT)
    except subprocess.TimeoutExpired:
        return "caught"  # by the limit: a fault may make a loop endless
    finally:
        path.write_text(right, encoding="utf-8")
    if code in NO_TESTS:
        return f"its tests do not run: {said}"
    return "caught" if code == FAILED else "survived"


def run_tests(tests: Iterable[str], copy: Path, limit: float | None) -> tuple[int, str]:
    """Returns what pytest exits with on tests of the copy, up to the first failure, and says."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    # Bytecode is told from its source by seconds and size, which a fault may leave as they were.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
    ran = subprocess.run(
        [*command, *tests],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    return ran.returncode, (ran.stdout + ran.stderr).strip().rpartition("\n")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--list", action="store_true", help="name the faults and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these faults alone")
    given = parser.parse_args()
    unknown = set(given.only or ()) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no fault is named {', '.join(sorted(unknown))}: --list names all")
    chosen = [fault for fault in FAULTS if not given.only or fault.name in given.only]
    if given.list:
        print("\n".join(f"{fault.name:32} {fault.file}" for fault in chosen))
        return 0
    left = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        tests = sorted({test for fault in chosen for test in fault.tests})
        code, said = run_tests(tests, copy, None)
        print(f"without a fault: {said}", flush=True)
        if code:  # whatever is planted would count as caught
            return 1
        for fault in chosen:
            begin = perf_counter()
            found = outcome(fault, copy)
            left += found != "caught"
            print(f"{fault.name:32} {perf_counter() - begin:6.1f} s  {found}", flush=True)
    print(f"{len(chosen) - left} of {len(chosen)} caught")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
