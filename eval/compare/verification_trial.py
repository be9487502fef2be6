"""Decodes prompts with and without a verifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dllm.compatible import check
from dllm.decoding.observer import Pass
from dllm.eval.compare.verification import Divergence, Verification, compared, divergences
from dllm.generate import Stream, generate
from dllm.models.model import DenoisingModel
from dllm.settings import Settings
from dllm.state.candidates import Candidates


@dataclass(frozen=True)
class Trial:
    """A verifier, named in the settings, on a list of prompts."""

    model: DenoisingModel
    prompts: Sequence[Any]
    settings: Settings
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.settings.verifier is None:
            raise ValueError("there is no verifier in the settings: such as verifier='ssd'")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.settings.generator is not None:
            raise ValueError("both runs must draw the same noise: give seed, not generator")
        check(self.model, self.settings)

    def parts(self) -> Iterator[Verification]:
        """Yields what became of each batch."""
        for start in range(0, len(self.prompts), self.batch_size):
            prompts = list(self.prompts[start : start + self.batch_size])
            seed = self.settings.seed
            if isinstance(seed, list):
                seeds = seed[start : start + self.batch_size]
            else:
                seeds = [(seed or 0) + start + row for row in range(len(prompts))]
            settings = replace(self.settings, seed=seeds)
            plain = replace(settings, verifier=None)
            pair = generate(self.model, prompts, plain), generate(self.model, prompts, settings)
            found = tuple(
                replace(one, prompt=start + one.prompt, margin=self._margin(prompts, plain, one))
                for one in divergences(*pair)
            )
            yield compared(*pair, found)

    def _margin(self, prompts: list[Any], plain: Settings, at: Divergence) -> float:
        """Returns how sure the base was in the pass and at the place of a divergence."""
        margins: list[float] = []

        def look(done: Pass) -> None:
            if int(done.canvas.step[at.prompt]) == at.step and bool(done.window.active[at.prompt]):
                column = int(done.canvas.prompt_length[at.prompt]) + at.place
                here = (done.window.columns[at.prompt] == column).nonzero().flatten()
                logits = done.logits[at.prompt, here].double()
                margins.extend(Candidates(logits, logits.argmax(-1)).margin.tolist())

        for _ in Stream(self.model, prompts, plain, observer=look):
            pass
        return margins[0] if margins else float("nan")
