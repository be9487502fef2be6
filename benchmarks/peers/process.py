"""A peer in a process of its own, asked line by line."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dllm.reading import parse_json

RUNNER = Path(__file__).with_name("runner.py")


@dataclass(frozen=True)
class Place:
    """A peer, its code and the interpreter that runs it."""

    peer: str
    folder: Path
    interpreter: str
    modelling: Path  # folder of modeling_llada.py

    def check(self) -> None:
        """Raises ValueError where the code is not where it is looked for."""
        for file, what in self._needed():
            if not file.is_file():
                raise ValueError(f"{file} is missing: give {what}")

    def _needed(self) -> list[tuple[Path, str]]:
        checkout = f"the checkout of {self.peer} as FOLDER"
        if self.peer == "fast_dllm":
            return [(self.folder / "llada" / "generate.py", checkout)]
        if self.peer == "d2cache":
            return [(self.folder / "src" / "generation" / "vanilla.py", checkout)]
        network = "with --modelling the folder of LLaDA's own network, as beside its weights on the"
        return [
            (self.folder / "generate.py", checkout),
            (
                self.modelling / "modeling_llada.py",
                f"{network} hub or as in Fast-dLLM/llada/model",
            ),
        ]

    def commit(self) -> str | None:
        """Returns the commit of the checkout, None where git does not say."""
        command = ["git", "-C", str(self.folder), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None


class Peer:
    """A running peer; raises RuntimeError with the peer's own traceback where something fails."""

    def __init__(self, place: Place, checkpoint: Path, threads: int) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self.place = place
        # Isolated: neither this project nor the folder of the runner is on the peer's path.
        self.process = subprocess.Popen(
            [place.interpreter, "-I", str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
            encoding="utf-8",
        )
        said = {
            "peer": place.peer,
            "folder": str(place.folder.resolve()),
            "modelling": str(place.modelling.resolve()),
            "checkpoint": str(checkpoint),
            "threads": threads,
        }
        self.versions = self.ask(json.dumps(said))

    def ask(self, line: str) -> dict[str, Any]:
        """Returns the answer to a line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            told = self.process.stdout.readline()
        except BrokenPipeError:
            told = ""
        if not told:
            raise RuntimeError(
                f"{self.place.peer} ended with code {self.process.wait()}; see its messages above"
            )
        answer: dict[str, Any] = parse_json(told, f"the answer of {self.place.peer}")
        if "error" in answer:
            raise RuntimeError(f"{self.place.peer} failed:\n{answer['error']}")
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()  # ends its loop
        self.process.wait()
        self.process.stdout.close()
