"""A question of the benchmark: asks, shows an answer, judges one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

Answer = tuple[str, ...]  # names of a line, or symbols of a grid row by row


@dataclass(frozen=True)
class Verdict:
    """How an answer was read, and whether it is right."""

    loose: bool  # right, however it was written
    strict: bool  # right, and in the form that was asked for, with nothing around it
    answer: Answer | None  # None: nothing like an answer was found


class Instance(ABC):
    """One question; `outputs` are all answers that are right."""

    solution: Answer  # one that is right

    @property
    @abstractmethod
    def question(self) -> str: ...

    @abstractmethod
    def outputs(self) -> Iterator[Answer]:
        """Yields every answer that is right once, all of the same length."""

    @abstractmethod
    def is_right(self, answer: Answer) -> bool:
        """Whether an answer is one of the outputs, found without listing them."""

    @abstractmethod
    def write(self, answer: Answer) -> str:
        """Returns an answer in the form that the question asks for."""

    @abstractmethod
    def read(self, text: str) -> Answer | None:
        """Returns the answer in a text, None if there is none."""

    @property
    def response(self) -> str:
        """A text that a model might write."""
        return self.write(self.solution)

    def verdict(self, text: str) -> Verdict:
        """Returns how a text was read, and whether it is right."""
        answer = self.read(text)
        if answer is None or not self.is_right(answer):
            return Verdict(loose=False, strict=False, answer=answer)
        return Verdict(loose=True, strict=text.strip() == self.write(answer), answer=answer)
