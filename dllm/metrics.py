"""What a generation cost and gave, counted one way for every method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from time import perf_counter
from typing import Any

import torch

from dllm.models.cost import Cost
from dllm.state.plan import PassShape
from dllm.state.trace import as_frame


@dataclass(frozen=True)
class RowMetrics:
    """One row of a batch; equal to what the row would give alone, but for time."""

    prompt_tokens: int
    valid_tokens: int  # generated tokens before the first end token
    raw_tokens: int  # tokens that the model committed, end tokens included
    forwards: int  # passes in which the row had something to commit
    row_forwards: int  # the same, with every variant of the row counted
    finish_reason: str  # "eos", "stop", "length" or "interrupted"
    # Forwards after which a verifier had 1, 2, ... schedule steps for certain; () without one.
    accepted: tuple[int, ...] = ()
    forced: int = 0  # tokens that a constraint left no choice of, committed beside the scheduler's
    # Of rows that a grammar was asked about token by token: how many it refused (`rejected`), those
    # of them that it could not decide on (`undecided`), and the tokens that it wrote (`rewritten`).
    asked: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens_per_forward(self) -> float:
        """Valid tokens for each pass the row took part in."""
        return self.valid_tokens / self.forwards if self.forwards else 0.0


@dataclass(frozen=True, repr=False)
class Metrics:
    """One generation, which may hold many rows; times in seconds, device synchronised."""

    rows: tuple[RowMetrics, ...]
    forwards: Mapping[str, int]  # passes of the batch by kind: refresh, step, commit, probe, draft
    rows_fed: int  # sum over passes of the rows in the batch
    tokens_fed: int  # sum over passes of rows times fed columns
    prefill_seconds: float  # up to the end of the first pass, which reads the prompt
    decode_seconds: float  # everything after it
    store_bytes: int  # K/V store
    peak_memory_bytes: int | None  # device memory; None on a CPU
    fed: tuple[int, ...] = ()  # columns of a row that each pass fed, in order
    flops: int | None = None  # of the matrix products of all passes; None for a wrapped module
    # Of `tokens_fed`, what lay within a row that was under way: the rest was fed because others
    # were longer, or not finished. What ends cut off counts as the row's.
    tokens_needed: int | None = None

    @property
    def padding(self) -> float | None:
        """The share of the fed columns that no row needed; None where rows are not known."""
        if self.tokens_needed is None or not self.tokens_fed:
            return None
        return 1 - self.tokens_needed / self.tokens_fed

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.forwards.items())
        rows = f"{len(self.rows)} row{'' if len(self.rows) == 1 else 's'}"
        return (
            f"Metrics({rows}, {self.valid_tokens} tokens, {self.num_forwards} forwards ({kinds}), "
            f"{self.tokens_per_forward:.2f} tokens per forward, {self.seconds:.2f} s, "
            f"{self.tokens_per_second:.0f} tokens per second)"
        )

    def to_pandas(self) -> Any:
        """Returns a pandas.DataFrame with a line for each row of the batch."""
        rows = [{**asdict(row), "tokens_per_forward": row.tokens_per_forward} for row in self.rows]
        names = [one.name for one in fields(RowMetrics)]
        return as_frame(rows, [*names, "tokens_per_forward"])

    @property
    def num_forwards(self) -> int:
        """Passes of the batch."""
        return sum(self.forwards.values())

    @property
    def valid_tokens(self) -> int:
        """Tokens before the first end token, over all rows."""
        return sum(row.valid_tokens for row in self.rows)

    @property
    def raw_tokens(self) -> int:
        """Tokens that the model committed, over all rows."""
        return sum(row.raw_tokens for row in self.rows)

    @property
    def tokens_per_forward(self) -> float:
        """Valid tokens for each pass of the batch, divided by its rows."""
        return _ratio(self.valid_tokens, sum(row.forwards for row in self.rows))

    @property
    def raw_tokens_per_forward(self) -> float:
        """The same with all committed tokens."""
        return _ratio(self.raw_tokens, sum(row.forwards for row in self.rows))

    @property
    def seconds(self) -> float:
        """Prefill and decode together."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        """Valid tokens for each second, prefill included."""
        return _ratio(self.valid_tokens, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as JSON-ready values, derived figures included."""
        record = asdict(self)
        record["rows"] = [
            {**asdict(row), "tokens_per_forward": row.tokens_per_forward} for row in self.rows
        ]
        names = ("num_forwards", "valid_tokens", "raw_tokens", "tokens_per_forward")
        more = ("raw_tokens_per_forward", "seconds", "tokens_per_second", "padding")
        return {**record, **{name: getattr(self, name) for name in names + more}}


@dataclass
class Meter:
    """The passes of a generation while it runs; a pass costs an append, figures are made later."""

    device: torch.device
    passes: list[PassShape] = field(default_factory=list)  # that are not in the sums yet
    cost: Cost | None = None
    store_bytes: int = 0
    started: float = field(default_factory=perf_counter)
    first_pass: float | None = None  # when it was over
    probing: float = 0.0  # seconds before the clock started, a part of the first pass's
    _forwards: Counter[str] = field(default_factory=Counter)
    _fed: list[int] = field(default_factory=list)
    _sums: list[int] = field(default_factory=lambda: [0, 0, 0])  # rows, tokens, FLOPs
    _seated: tuple[int, Sequence[int], int] | None = None  # rows of the canvas; see `seat`
    _needed: int = 0  # columns

    def start(self, cost: Cost | None, store_bytes: int) -> None:
        """Starts the clock; `cost` are the prices of the model's passes, if they are known."""
        self.cost, self.store_bytes = cost, store_bytes
        if self.device.type == "cuda":
            if not self.passes:  # else the peak may have been that of probes
                torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        self.started = perf_counter() - self.probing

    @property
    def forwards(self) -> Counter[str]:
        """Passes by kind."""
        self._sum_up()
        return self._forwards

    @property
    def fed(self) -> list[int]:
        """Columns of a row that each pass fed."""
        self._sum_up()
        return self._fed

    @property
    def rows_fed(self) -> int:
        """Rows of all passes together."""
        self._sum_up()
        return self._sums[0]

    @property
    def tokens_fed(self) -> int:
        """Rows times columns of all passes together."""
        self._sum_up()
        return self._sums[1]

    @property
    def flops(self) -> int:
        """FLOPs of all passes together, 0 where prices are not known."""
        self._sum_up()
        return self._sums[2]

    def seat(self, num_rows: int, lengths: Sequence[int], more: int = 0) -> None:
        """Notes whose passes follow: of so many rows, the columns of those that are under way.

        A pass feeds `more` columns beside those of the canvas, for each row.
        """
        self._sum_up()
        self._seated = num_rows, lengths, more

    @property
    def tokens_needed(self) -> int | None:
        """Columns that were fed within a row that was under way; None where nobody said."""
        self._sum_up()
        return None if self._seated is None else self._needed

    def _sum_up(self) -> None:
        by_width: dict[int, int] = {}
        for one in self.passes:
            self._forwards[one.kind] += 1
            self._fed.append(one.num_fed // one.num_canvases)
            if self._seated is not None:
                num_rows, lengths, more = self._seated
                width = one.num_fed // one.num_canvases
                if width not in by_width:
                    by_width[width] = sum(min(width, length + more) for length in lengths)
                copies = one.num_rows * one.num_canvases  # variants of a row among them
                self._needed += copies * by_width[width] // num_rows
            rows, flops = one.num_rows, 0 if self.cost is None else self.cost.flops(one)
            fed = (rows * one.num_canvases, rows * one.num_fed, flops)
            self._sums = [total + part for total, part in zip(self._sums, fed, strict=True)]
        self.passes.clear()

    def finish(self, rows: tuple[RowMetrics, ...]) -> Metrics:
        """Stops the clock and returns the record."""
        peak = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        end = perf_counter()
        first = self.first_pass or end
        return Metrics(
            rows=rows,
            forwards=dict(self.forwards),
            rows_fed=self.rows_fed,
            tokens_fed=self.tokens_fed,
            prefill_seconds=first - self.started,
            decode_seconds=end - first,
            store_bytes=self.store_bytes,
            peak_memory_bytes=peak,
            fed=tuple(self.fed),
            flops=None if self.cost is None else self.flops,
            tokens_needed=self.tokens_needed,
        )


def _ratio(count: int, total: float) -> float:
    return count / total if total else 0.0
