"""One answer that is asked for, and what whoever asked is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import monotonic

from dllm.assembly import Beside, loop_of
from dllm.decoding.loop import DenoisingLoop
from dllm.metrics import RowMetrics
from dllm.models.model import DenoisingModel
from dllm.prompts import MOST_NEW_TOKENS, Prompt, Row, encode_all
from dllm.settings import Settings


@dataclass(frozen=True)
class Piece:
    """Text that is final and goes on where the text before it ended."""

    text: str


@dataclass(frozen=True)
class Drawn:
    """What one step did to the canvas; places count from the first token of the answer."""

    step: int  # forwards of this answer
    committed: tuple[tuple[int, int, str], ...]  # place, token, text: edits are among them
    remasked: tuple[int, ...]
    drafts: tuple[tuple[int, int, str, float], ...]  # place, token, text, confidence


@dataclass(frozen=True)
class Answer:
    """A finished answer."""

    text: str
    tokens: tuple[int, ...]
    confidence: tuple[float, ...]  # of each token when it was committed
    row: RowMetrics
    queued_seconds: float
    decoding_seconds: float
    reused: int = 0  # columns of the prompt that an earlier row had read
    whole: bool = False  # of a language that is about all of it: nothing was cut off


@dataclass(frozen=True)
class Failure:
    """Why there is no answer."""

    error: Exception


Update = Piece | Drawn | Answer | Failure


class LateError(TimeoutError):
    """The answer was not there in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer was not there after {seconds:.1f} s: ask for fewer tokens, or later"
        )


class StoppedError(RuntimeError):
    """The server ends before the answer is there."""


@dataclass
class Counts:
    """What became of jobs so far, and the passes that it took."""

    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    forwards: int = 0
    fed: int = 0  # columns of a row that they fed


@dataclass(frozen=True)
class Key:
    """What rows of one canvas have in common."""

    settings: str  # as JSON, but for what each row has of its own
    num_slots: int  # masks and what is given between and behind them; 0: any number
    block_length: int
    constrained: str  # how rows are held to languages; "": they are not
    infilled: bool


@dataclass(eq=False)
class Job:
    """One row to decode; `tell` is called from the engine's thread and must not wait."""

    row: Row
    settings: Settings  # with the constraint of this row, without a seed
    seed: int
    key: Key
    num_columns: int  # of its canvas, to the end of its last block where models decode whole ones
    num_slots: int  # of them, behind the prompt
    tell: Callable[[Update], None]
    pieces: bool = False  # tell of text as it becomes final
    drawn: bool = False  # tell of every step
    deadline: float | None = None  # on the monotonic clock
    asked: float = field(default_factory=monotonic)
    begun: float | None = None
    cancelled: bool = False  # set by who asked: nobody waits any more
    told: str = ""  # the text of its pieces so far

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and monotonic() > self.deadline

    @cached_property
    def num_open(self) -> int:
        """Tokens of the answer: the slots before what was given behind a gap."""
        given = [place for place, token in enumerate(self.row.slots) if token != self.row.slots[0]]
        return given[0] if given else len(self.row.slots)


def jobs_of(
    model: DenoisingModel,
    prompt: Prompt,
    settings: Settings,
    seeds: Sequence[int],
    tell: Callable[[int], Callable[[Update], None]],
) -> list[Job]:
    """Returns a job for each seed; `tell` is called with its number.

    Raises ValueError or TypeError for what cannot be decoded.
    """
    (row,) = encode_all(model, [prompt], settings)
    shared = replace(settings, n=1, seed=None)
    loop, canvas = loop_of(model, [row], replace(shared, seed=0), Beside())
    layout, mixed = canvas.layout, _mixes(loop, row)
    alike = replace(shared, constraint=None)
    if mixed:
        alike = replace(alike, max_new_tokens=MOST_NEW_TOKENS)
    key = Key(
        settings=alike.to_json(),
        num_slots=0 if mixed else layout.num_slots,
        block_length=layout.block_length,
        constrained="" if loop.constrained is None else type(loop.constrained).__name__,
        infilled=row.infilled,
    )
    return [
        Job(row, shared, seed, key, layout.num_columns, layout.num_slots, tell(number))
        for number, seed in enumerate(seeds)
    ]


def _mixes(loop: DenoisingLoop, row: Row) -> bool:
    """Whether rows of other lengths may share a canvas with a row.

    With caches of final blocks a shorter row costs the others nothing, and models of whole blocks
    have as many slots as their last block wants. Without a store every pass feeds the longest row's
    columns for all, which was slower on a CPU than canvases that take turns; and rows that enter
    their blocks together keep others out for longer.
    """
    return loop.cache.final_blocks and not row.infilled and loop.constrained is None
