"""Runs one model-written program under limits and reports how it ended, with its nonce.

The innermost process of `dllm.eval.sandbox`: a fresh interpreter that knows the standard library.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import types

DETAIL = 500  # characters of an error's text


def main(report: int) -> None:
    """Reads the job from stdin, runs its program and writes one line to `report`."""
    job = json.load(sys.stdin)
    for name, limit in job["limits"].items():
        _limit(getattr(resource, name, None), limit)
    write, dumps, leave = os.write, json.dumps, os._exit  # the code may replace them
    kind, detail = outcome(job["program"])
    write(report, dumps({"nonce": job["nonce"], "kind": kind, "detail": detail}).encode())
    leave(0)


def outcome(program: str) -> tuple[str, str]:
    """Returns how a program ended: its kind, and the error's text."""
    try:
        code = compile(program, "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return "syntax", _text(error)
    module = types.ModuleType("program")  # not __main__: examples under that guard are not run
    sys.modules["program"] = module
    try:
        exec(code, module.__dict__)
    except AssertionError as error:
        return "assertion", _text(error)
    except MemoryError as error:
        return "memory", _text(error)
    except SystemExit as error:
        return "exited", _text(error)
    except BaseException as error:  # noqa: BLE001 - whatever the code raises is its failure
        return "exception", _text(error)
    return "passed", ""


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:DETAIL]
    except BaseException:  # noqa: BLE001 - its class is the code's too
        return "an error that has no text"


def _limit(kind: int | None, limit: int) -> None:
    if kind is None:
        return
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main(int(sys.argv[1]))
