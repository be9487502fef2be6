"""An error of one process, as the others are told it."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.run.run import RefusedError

KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (RefusedError, NotEnoughMemoryError, BrokenLogitsError, ValueError, OSError)
}


@dataclass(frozen=True)
class Failure:
    """An error that one process tells the others, so that all of them end a run the same way."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Returns what can be told of an error: the nearest kind that all of them know."""
        names = [base.__name__ for base in type(error).__mro__]
        return cls(next(name for name in names if name in KINDS), str(error))

    def as_error(self) -> Exception:
        """Returns the error again."""
        return KINDS[self.kind](self.message)
