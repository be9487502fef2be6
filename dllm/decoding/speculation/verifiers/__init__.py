"""The verifiers: what of a row is drafted ahead, and how far, one method a file."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from dllm.options import Range
from dllm.registry import Part, Registry

# How the canvases of a row share a pass: as rows of the batch, each with keys of its own; end to
# end in one row under a mask, with shared keys; or, as a reference, in a pass of its own each.
Execution = Literal["batch", "tree", "sequential"]
Guard = Annotated[float, Range(0, 1, below=True)]  # a probability; 0: none


class Verifier(Part, ABC):
    """Makes several steps certain with one pass, and changes no token of a named run without it.

    That run is the same without the verifier, but for the settings in `base`.
    """

    source: ClassVar[str]  # paper and code that the method is from
    base: ClassVar[Mapping[str, Any]] = {}

    @property
    @abstractmethod
    def num_variants(self) -> int:
        """The most canvases of a row in one pass; 1 is decoding without a verifier."""

    @property
    def most_steps(self) -> int:
        """The most steps of the named run that one pass makes certain."""
        return self.num_variants

    @property
    def own_block(self) -> int | None:
        """The columns that it decodes together in place of a block; None: those of the settings."""
        return None


class StepVerifier(Verifier):
    """Runs a scheduler's next steps in one pass and keeps those that it would have taken itself.

    The engine is the same for all (`speculation/passes.py`); they differ in how they count.
    """

    adaptive: bool  # each verifier's own fields: their place among its options differs
    execution: Execution
    margin_guard: Guard


registry: Registry[Verifier] = Registry(sys.modules[__name__], Verifier, "verifier")  # type: ignore[type-abstract]

__all__ = ["Execution", "Guard", "StepVerifier", "Verifier", "registry"]
