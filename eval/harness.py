"""Runs the lm-evaluation-harness with the model "dllm": `python -m dllm.eval.harness`.

All flags are those of `lm_eval`. To use the model from Python, import this module and call
`lm_eval.simple_evaluate(model="dllm", ...)`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.lm_eval.arguments import ArgumentError
from dllm.models.config import CheckpointError

try:
    from lm_eval.__main__ import cli_evaluate
except ImportError as error:
    missing = f"the lm-evaluation-harness is not installed ({error}): pip install 'dllm[lm-eval]'"
    if __name__ == "__main__":
        sys.exit(f"error: {missing}")
    raise ImportError(missing) from error

from dllm.eval.lm_eval.adapter import DiffusionLM


def main() -> None:
    """Runs `lm_eval`'s command line; what a user can mend is one line on stderr."""
    DiffusionLM.stats_folder = output_folder(sys.argv[1:])
    try:
        cli_evaluate()
    except (ArgumentError, CheckpointError, NotEnoughMemoryError, BrokenLogitsError) as error:
        sys.exit(f"error: {error}")


def output_folder(arguments: list[str]) -> Path | None:
    """Returns the folder that `--output_path` names, itself or by a file in it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_path", "-o", type=Path)
    path: Path | None = parser.parse_known_args(arguments)[0].output_path
    return path.parent if path is not None and path.suffix == ".json" else path


__all__ = ["DiffusionLM", "main"]

if __name__ == "__main__":
    main()
