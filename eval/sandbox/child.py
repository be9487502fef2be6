"""Runs one model-written program under limits and reports how it ended.

The innermost process of `dllm.eval.sandbox`: a fresh interpreter that knows the standard library.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

DETAIL = 500  # characters of an error's text
TOKEN = 64  # bytes, at most, of what says that a program passed


def main(report: int, secret: int) -> None:
    """Reads the job from stdin, runs its program and writes to `report` how it ended.

    A program that passed is reported by the token that lies in the pipe `secret`, and by nothing
    else; any other end by its kind and the error's text, which the program may write as well.
    """
    job = json.load(sys.stdin)
    for name, limit in job["limits"].items():
        _limit(getattr(resource, name, None), limit)
    write, read, leave = os.write, os.read, os._exit  # the code may replace them
    run: Callable[[types.CodeType, dict[str, Any]], object] = exec
    end = partial(_end, report, write, leave)
    try:
        code = compile(job["program"], "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        end("syntax", error)
    module = types.ModuleType("program")  # not __main__: examples under that guard are not run
    sys.modules["program"] = module
    try:
        # One expression, so that the token lies on the interpreter's stack while the program runs:
        # no name, no frame and no container has it, and there is no line that a program which
        # moves the interpreter could go on at. It goes out only if `run` returns.
        write(report, (read(secret, TOKEN), run(code, module.__dict__))[0])
        leave(0)
    except AssertionError as error:
        end("assertion", error)
    except MemoryError as error:
        end("memory", error)
    except SystemExit as error:
        end("exited", error)
    except BaseException as error:  # noqa: BLE001 - whatever the code raises is its failure
        end("exception", error)


def _end(
    report: int,
    write: Callable[[int, bytes], object],
    leave: Callable[[int], object],
    kind: str,
    error: BaseException,
) -> None:
    write(report, f"{kind}\n{_text(error)}".encode("utf-8", "backslashreplace"))
    leave(0)


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
    main(int(sys.argv[1]), int(sys.argv[2]))
