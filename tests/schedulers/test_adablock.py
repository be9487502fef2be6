"""Spans of columns that a method chooses by itself: AdaBlock, Dimple and SlowFast.

Each rule is written a second time here, in plain Python for one row, from the papers and the
authors' code; the schedulers must agree with it over random confidences and over a real model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import floor
from statistics import fmean, pvariance
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm import schedulers
from dllm.schedulers import Decision
from dllm.schedulers.adablock import AdaBlock
from dllm.schedulers.dimple import Dimple
from dllm.schedulers.end_of_text import EndOfText
from dllm.schedulers.prophet import Prophet
from dllm.schedulers.slowfast import SlowFast
from dllm.schedulers.threshold import Threshold
from dllm.state.candidates import Candidates
from dllm.state.plan import StepPlan
from tests.support import GOLDEN
from tests.support.marks import crossed
from tests.support.models import golden_model, random_prompts
from tests.support.views import SETUP, candidates_of, view_of

create = schedulers.registry.create
CACHES = ("none", "prefix", "dual")
FILTER = str(GOLDEN / "models" / "l2p_filter" / "filter16.safetensors")
DOT, WORD = 6, 3  # tokens of the scripts
THIRD = tuple(range(0, 126, 3))  # of the golden models' tokens

Reading = tuple[Sequence[float], Sequence[int]]  # confidence and token of each slot


@dataclass
class Row:
    """One row that an oracle decodes: it looks, writes, and a forward is over."""

    count: int  # slots
    read: Callable[[Row], Reading]
    tokens: list[int | None] = field(default_factory=list)
    commit_step: list[int] = field(default_factory=list)
    step: int = 0
    seen: tuple[int, Reading] | None = None

    def __post_init__(self) -> None:
        self.tokens, self.commit_step = [None] * self.count, [-1] * self.count

    def look(self) -> Reading:
        if self.seen is None or self.seen[0] != self.step:
            self.seen = (self.step, self.read(self))
        return self.seen[1]

    def write(self, chosen: Sequence[int]) -> None:
        assert chosen
        for slot in chosen:
            assert self.tokens[slot] is None
            self.tokens[slot] = self.look()[1][slot]
            self.commit_step[slot] = self.step
        self.step += 1

    def masks(self, start: int = 0, end: int | None = None) -> list[int]:
        end = self.count if end is None else min(end, self.count)
        return [slot for slot in range(start, end) if self.tokens[slot] is None]

    def best(self, slots: Sequence[int]) -> int:
        confidence = self.look()[0]
        return max(slots, key=lambda slot: (confidence[slot], -slot))

    def sure(self, slots: Sequence[int], threshold: float) -> list[int]:
        return [slot for slot in slots if self.look()[0][slot] >= threshold]


Decode = Callable[[Row, int, int], None]  # fills the slots of a row from a start to an end


def threshold_block(scheduler: Threshold) -> Decode:
    def decode(row: Row, start: int, end: int) -> None:
        while masks := row.masks(start, end):
            row.write(row.sure(masks, scheduler.threshold) or [row.best(masks)])

    return decode


def quota_block(num_steps: int) -> Decode:
    """As many forwards a block, larger quotas first."""

    def decode(row: Row, start: int, end: int) -> None:
        for left in range(num_steps, 0, -1):
            masks = row.masks(start, end)
            ranked = sorted(masks, key=lambda slot: (-row.look()[0][slot], slot))
            if masks:
                row.write(ranked[: -(-len(masks) // left)])

    return decode


def slowfast_block(scheduler: SlowFast, spans: list[tuple[int, int]] | None = None) -> Decode:
    def slow(row: Row, start: int, stop: int) -> int:
        """Returns where the span ends."""
        notes: list[int] = []
        end = None
        for _ in range(scheduler.most_slow):
            masks = row.masks(start, stop)
            if not masks:
                break
            promising = row.sure(masks, scheduler.low)
            notes = [*notes, max(promising, default=start) + 1][-scheduler.window :]
            full = len(notes) == scheduler.window
            if end is None and full and pvariance(notes) < scheduler.variance:
                end = notes[-1]
            sure = row.sure(masks, scheduler.high) if scheduler.slow == "sure" else []
            row.write(sure or [row.best(masks)])
            if end is not None and scheduler.early:
                break
        return floor(fmean(notes)) if end is None else end

    def decode(row: Row, start: int, stop: int) -> None:
        while row.masks(start, stop):
            end = slow(row, start, stop)
            while masks := row.masks(start, end):
                row.write(row.sure(masks, scheduler.high) or [row.best(masks)])
            if spans is not None:
                spans.append((start, end))
            start = end

    return decode


def fixed_blocks(row: Row, block: int, decode: Decode) -> None:
    for start in range(0, row.count, block):
        decode(row, start, min(start + block, row.count))


def adaptive_blocks(row: Row, block: int, decode: Decode, scheduler: AdaBlock) -> list[int]:
    """Fills a row and returns the lengths of its blocks."""
    start, lengths = 0, []
    while start < row.count:
        confidence, tokens = row.look()
        left = row.count - start
        reach = min(int(scheduler.reach * row.count), left)
        found = [s for s in range(start, start + reach) if tokens[s] in scheduler.delimiters]
        length = min(block, left)
        if found and confidence[row.best(found)] >= scheduler.delimiter_threshold:
            length = row.best(found) - start + 1
        decode(row, start, start + length)
        lengths.append(length)
        start += length
    return lengths


def dimple_row(row: Row, scheduler: Dimple) -> None:
    steps = scheduler.steps or row.count
    epsilon = Fraction(str(scheduler.epsilon))
    times = [1 - (1 - epsilon) * i / steps for i in range(steps + 1)]
    for i in range(steps):
        masks, confidence = row.masks(), row.look()[0]
        chosen = [slot for slot in masks if confidence[slot] > scheduler.threshold]
        chosen = masks if i == steps - 1 else chosen
        if not chosen and scheduler.order == "first":
            chosen = masks[:1]
        if not chosen:
            ratio = Fraction(len(masks), row.count)
            later = [k for k in range(steps + 1) if times[k] < ratio] or [steps]
            due = len(masks)
            for k in range(max(later[0], i + 1), steps):
                if int(len(masks) * (1 - times[k] / ratio)) >= 1:
                    due = int(len(masks) * (1 - times[k] / ratio))
                    break
            chosen = sorted(masks, key=lambda slot: (-confidence[slot], slot))[:due]
        row.write(chosen)
        if not row.masks():
            return


class Scripted:
    """A golden model's frame around prescribed confidences and tokens, (B, T, N)."""

    def __init__(self, confidence: Tensor, tokens: Tensor, prompt_length: Tensor) -> None:
        self.model = golden_model("llada_gqa")
        self.confidence, self.tokens, self.prompt_length = confidence, tokens, prompt_length
        self.step = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, _: Tensor, plan: StepPlan, __: Any) -> Tensor:
        columns = plan.positions.gather(1, plan.logit_rows)
        slots = (columns - self.prompt_length[:, None]).clamp(0, self.tokens.shape[2] - 1)
        step = min(self.step, self.tokens.shape[1] - 1)
        self.step += 1
        confidence = self.confidence[:, step].gather(1, slots)[..., None]
        tokens = self.tokens[:, step].gather(1, slots)[..., None]
        rest = (1 - confidence) / (self.spec.vocab_size - 1)
        logits = rest.repeat(1, 1, self.spec.vocab_size).scatter(-1, tokens, confidence)
        return logits.log()


@dataclass(frozen=True)
class Script:
    """What a model says of each slot of each row at each step, and the rows' numbers of slots."""

    counts: list[int]
    confidence: Tensor  # (B, T, N)
    tokens: Tensor  # (B, T, N)

    def run(self, scheduler: Any, block: int) -> Any:
        """Decodes all rows together; returns each slot's commit step, and the blocks' lengths."""
        prompts, lengths = [], [3 + 2 * row for row in range(len(self.counts))]
        mask = golden_model("llada_gqa").spec.mask_token_id
        for length, count in zip(lengths, self.counts, strict=True):
            prompts.append([1] * length + [mask] * count)
        model: Any = Scripted(self.confidence, self.tokens, torch.tensor(lengths))
        options: dict[str, Any] = {"infill": True, "block_length": block, "seed": 0}
        options["statistics_dtype"] = torch.float64
        stream = dllm.stream(model, prompts, scheduler=scheduler, **options)
        blocks = blocks_of(stream)
        steps = stream.output.trace.commit_step.tolist()
        cut = zip(steps, lengths, self.counts, strict=True)
        return [row[length : length + count] for row, length, count in cut], blocks

    def row(self, index: int) -> Row:
        def read(row: Row) -> Reading:
            step = min(row.step, self.tokens.shape[1] - 1)
            return self.confidence[index, step].tolist(), self.tokens[index, step].tolist()

        return Row(self.counts[index], read)

    def rows(self) -> list[Row]:
        return [self.row(index) for index in range(len(self.counts))]


def blocks_of(stream: dllm.Stream) -> list[list[int]]:
    """Runs a stream; returns the lengths of each row's blocks, which its commits never leave."""
    canvas = stream.canvas
    found: list[dict[int, int]] = [{} for _ in range(canvas.layout.num_rows)]
    starts = canvas.block_start
    for event in stream:
        where = torch.where(event.committed, event.columns, 0)
        for row, start in enumerate(starts.tolist()):
            columns = [column for column in where[row].tolist() if column]
            if columns:
                found[row].setdefault(start, 0)
                found[row][start] = max(found[row][start], max(columns) + 1)
                assert min(columns) >= start
        starts = canvas.block_start.clone()
    return [[end - start for start, end in row.items()] for row in found]


@st.composite
def scripts(draw: st.DrawFn, delimiters: bool = False) -> Script:
    counts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = (len(counts), 24, max(counts))
    # From all low to all high, and drifting to the left: spans open and close.
    level = draw(st.sampled_from([0.2, 0.5, 1.0, 2.0]))
    slope = draw(st.sampled_from([0.0, 0.05, 0.2]))
    raw = torch.rand(size, generator=source, dtype=torch.float64) ** (1 / level)
    raw = raw * (-slope * torch.arange(size[2])).exp()
    # Half steps: no confidence is equal to a threshold, and many are equal to one another.
    confidence = ((raw * 60).floor() + 2.5) / 64
    tokens = torch.full(size, WORD)
    if delimiters:
        share = draw(st.sampled_from([0.05, 0.3, 0.9]))
        tokens[torch.rand(size, generator=source) < share] = DOT
        # Summed in another order, equal logits may differ in the last digit.
        confidence = confidence + torch.rand(size, generator=source) * 1e-3
    return Script(counts, confidence, tokens)


def example(*steps: list[float], tokens: list[list[int]] | None = None) -> Script:
    """A script of one row."""
    confidence = torch.tensor(steps, dtype=torch.float64)[None]
    given_tokens = torch.full(confidence.shape, WORD) if tokens is None else torch.tensor([tokens])
    return Script([confidence.shape[2]], confidence, given_tokens)


# AdaBlock

# Of 16 slots at most 4 may be a block.
LINE = [WORD] * 16


def line(**delimiters: float) -> tuple[list[float], list[int]]:
    """Sixteen slots of 0.5, with delimiters of a given confidence at some: `at2=0.9`."""
    confidence, tokens = [0.5] * 16, list(LINE)
    for at, value in delimiters.items():
        slot = int(at.removeprefix("at"))
        confidence[slot], tokens[slot] = value, DOT
    return confidence, tokens


def ada(**options: Any) -> AdaBlock:
    return AdaBlock(**{"delimiters": (DOT,), "inner": Threshold(0.0), **options})


@pytest.mark.parametrize(
    ("delimiters", "options", "lengths"),
    [
        ({}, {}, [3, 3, 3, 3, 3, 1]),  # none: the usual length, the last block shortened
        ({"at1": 0.4}, {}, [2, 3, 3, 3, 3, 2]),  # a shorter block; blocks are counted from its end
        ({"at3": 0.4}, {}, [4, 3, 3, 3, 3]),  # a longer one, at the end of the reach
        ({"at4": 0.9}, {}, [3, 2, 3, 3, 3, 2]),  # beyond it for the first block
        ({"at1": 0.4, "at3": 0.6}, {}, [4, 3, 3, 3, 3]),  # the surest, not the first
        ({"at1": 0.6, "at3": 0.4}, {}, [2, 2, 3, 3, 3, 3]),
        ({"at1": 0.6, "at3": 0.6}, {}, [2, 2, 3, 3, 3, 3]),  # the first of equal ones
        ({"at0": 0.9}, {}, [1, 3, 3, 3, 3, 3]),
        ({"at1": 0.25}, {}, [3, 3, 3, 3, 3, 1]),  # not sure enough
        ({"at1": 0.25}, {"delimiter_threshold": 0.2}, [2, 3, 3, 3, 3, 2]),
        ({"at1": 0.9}, {"delimiter_threshold": 1.0}, [3, 3, 3, 3, 3, 1]),
        ({"at1": 0.9}, {"delimiters": ()}, [3, 3, 3, 3, 3, 1]),
        ({"at1": 0.9}, {"delimiters": (7, 8)}, [3, 3, 3, 3, 3, 1]),
        ({"at1": 0.9}, {"delimiters": (7, DOT)}, [2, 3, 3, 3, 3, 2]),
        ({"at1": 0.9}, {"reach": 0.1}, [3, 3, 3, 3, 3, 1]),  # one column
        ({"at0": 0.9}, {"reach": 0.1}, [1, 3, 3, 3, 3, 3]),
        ({"at11": 0.9, "at2": 0.8}, {"reach": 1.0}, [12, 3, 1]),
        ({"at15": 0.9}, {"reach": 1.0}, [16]),
        ({"at15": 0.9}, {}, [3, 3, 3, 3, 4]),  # the rest of the row, which is in reach
    ],
)
def test_a_block_ends_after_the_surest_delimiter(
    delimiters: dict[str, float], options: dict[str, Any], lengths: list[int]
) -> None:
    confidence, tokens = line(**delimiters)
    script = example(confidence, tokens=[tokens])
    steps, blocks = script.run(ada(**options), block=3)
    assert blocks == [lengths]
    # Threshold 0 fills a block at once: the forward that plans it is the one that fills it.
    expected = [step for step, length in enumerate(lengths) for _ in range(length)]
    assert steps == [expected]


def test_the_end_is_chosen_in_the_first_forward_of_a_block_alone() -> None:
    calm, early = line(), line(at1=0.9)
    for first, second, expected in ((calm, early, [4, 4]), (early, calm, [2, 4])):
        tokens = [first[1]] + [second[1]] * 15
        steps = [first[0]] + [second[0]] * 15
        script = example(*steps, tokens=tokens)
        commit, blocks = script.run(ada(inner=Threshold(1.0)), block=4)
        assert blocks[0][:2] == expected
        assert sorted(commit[0]) == list(range(16))  # one token a forward, none for planning


def decide(scheduler: Any, candidates: Candidates, **view: Any) -> Decision:
    """The decision in the first forward of one row of four slots."""
    state = scheduler.start(replace(SETUP, num_rows=1))
    masked = torch.ones(1, 4, dtype=torch.bool)
    decision: Decision = scheduler.decide(candidates, view_of(masked, state=state, **view))
    return decision


@pytest.mark.parametrize(("more", "length"), [(0.0, 4), (1e-9, 2)])
def test_a_delimiter_as_sure_as_the_threshold_ends_a_block(more: float, length: int) -> None:
    candidates = candidates_of([[0.3, 0.6, 0.3, 0.5]])
    candidates = replace(candidates, token=torch.tensor([[1, 1, 1, 0]]))
    exact = float(candidates.confidence[0, 3])
    scheduler = AdaBlock(Threshold(), (0,), exact + more, reach=1.0)
    end = decide(scheduler, candidates, block=torch.arange(4)[None] < 2).block_end
    assert end is not None
    assert end.tolist() == [length]


def test_thresholds_of_dimple_are_passed_and_those_of_slowfast_are_reached() -> None:
    candidates = candidates_of([[0.3, 0.6, 0.3, 0.5]])
    exact = float(candidates.confidence[0, 3])
    best, both = [[False, True, False, False]], [[False, True, False, True]]
    assert decide(Dimple(exact), candidates).commit.tolist() == best
    assert decide(Dimple(exact - 1e-9), candidates).commit.tolist() == both
    assert decide(SlowFast(exact, slow="sure"), candidates).commit.tolist() == both
    assert decide(SlowFast(exact + 1e-9, slow="sure"), candidates).commit.tolist() == best
    for more, note in ((0.0, 4), (1e-9, 2)):
        state = decide(SlowFast(low=exact + more), candidates).state
        assert state is not None
        assert state["notes"][0, -1] == note


def test_a_delimiter_that_is_there_already_ends_no_block() -> None:
    """Neither given text nor what was committed: only a mask can become a delimiter."""
    model = golden_model("llada_gqa")
    fixed = dict.fromkeys(range(0, 32, 3), DOT)
    options: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "fixed": fixed}
    scheduler = ada(delimiter_threshold=0.0, delimiters=tuple(range(126)))
    stream = dllm.stream(model, random_prompts(1), scheduler=scheduler, **options)
    assert sum(1 for _ in stream) > 4
    assert model.spec.mask_token_id not in stream.output.sequences[0]


def test_the_reach_is_a_part_of_each_row_not_of_the_longest() -> None:
    dots = [[DOT] * 24] * 24
    confidence = torch.full((2, 24, 24), 0.5, dtype=torch.float64)
    confidence += torch.arange(24) * 0.01  # the last in reach is the surest
    script = Script([24, 8], confidence, torch.tensor([dots, dots]))
    assert script.run(ada(), block=4)[1] == [[6, 6, 6, 6], [2, 2, 2, 2]]


@settings(deadline=None, max_examples=40)
@given(
    script=scripts(delimiters=True),
    block=st.integers(1, 8),
    reach=st.sampled_from([0.05, 0.25, 0.6, 1.0]),
    inner=st.sampled_from([Threshold(0.6), SlowFast(), create("slowfast@code")]),
)
def test_adaptive_blocks_agree_with_the_rule(
    script: Script, block: int, reach: float, inner: Any
) -> None:
    block = min(block, max(script.counts))
    scheduler = ada(inner=inner, reach=reach)
    rows = script.rows()
    decode = threshold_block(inner) if isinstance(inner, Threshold) else slowfast_block(inner)
    lengths = [adaptive_blocks(row, block, decode, scheduler) for row in rows]
    steps, blocks = script.run(scheduler, block)
    assert blocks == lengths
    assert steps == [row.commit_step for row in rows]


@pytest.mark.parametrize("inner", ["fixed_quota:8", "learn2pd:filter=null,steps=8"])
def test_each_block_takes_its_share_of_the_steps(inner: str) -> None:
    confidence, tokens = line(at0=0.4, at7=0.9)  # blocks of 8, 1, 4, 3 columns
    later = list(tokens)
    later[8] = DOT
    rising = [value + slot / 1000 for slot, value in enumerate(confidence)]
    script = example(*[rising] * 16, tokens=[tokens, tokens] + [later] * 14)
    scheduler = ada(inner=create(inner), reach=0.5)  # two for each of four usual blocks
    row = script.row(0)
    lengths = adaptive_blocks(row, 4, quota_block(2), scheduler)
    steps, blocks = script.run(scheduler, block=4)
    assert blocks == [lengths] == [[8, 1, 4, 3]]
    assert steps == [row.commit_step]
    assert [steps[0].count(step) for step in range(7)] == [4, 4, 1, 2, 2, 2, 1]


INNER = [
    "threshold:0.5",
    "fixed_quota:8",
    "slowfast:0.5",
    "klass:0.4,kl_threshold=0.5",
    "dimple:0.6",
    "credit:0.6",
    "dream:entropy",
    "wino:0.4,threshold_back=0.5",
    "hierarchical:0.6,low_threshold=0.2",
    "localleap:0.7,relaxed_threshold=0.4,radius=2",
    "learn2pd:filter=null,steps=16",
    "end_of_text:threshold:0.4",
]


def golden_run(scheduler: Any, **given_options: Any) -> dllm.Stream:
    options: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "at_eos": "ignore"}
    return dllm.stream(
        golden_model("llada_gqa"),
        random_prompts(3, seed=4),
        scheduler=scheduler,
        **{**options, **given_options},
    )


def steps_of(stream: dllm.Stream) -> Any:
    for _ in stream:
        pass
    out = stream.output
    return out.sequences, out.trace.commit_step.tolist(), out.metrics.num_forwards


@pytest.mark.few(4)
@pytest.mark.parametrize("inner", [name for name in INNER if not name.startswith("dimple")])
def test_without_delimiters_the_inner_scheduler_is_alone(inner: str) -> None:
    never: dict[str, Any] = {"name": "adablock", "inner": inner, "delimiters": THIRD}
    never |= {"delimiter_threshold": 1.0, "reach": 0.6}
    assert steps_of(golden_run(never)) == steps_of(golden_run(inner))


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "inner",
    [
        "threshold:0.5",
        "credit:0.6",
        "klass:0.4,kl_threshold=0.5",
        "end_of_text:credit:0.6",
        "wino:0.3,threshold_back=0.7",
        "token_editing:0.4,editing_threshold=0.3,post_steps=3",
        "rcr",
    ],
)
def test_the_usual_length_means_nothing_where_every_token_ends_a_block(inner: str) -> None:
    around: dict[str, Any] = {"name": "adablock", "inner": inner, "reach": 0.5}
    around |= {"delimiters": tuple(range(128)), "delimiter_threshold": 0.0}
    runs = [steps_of(golden_run(around, block_length=length)) for length in (2, 16)]
    assert runs[0] == runs[1]


@pytest.mark.few(1)
@pytest.mark.parametrize(("inner", "cache"), crossed(("threshold:0.5", "slowfast:0.5"), CACHES))
def test_without_delimiters_caches_are_fed_as_ever(inner: str, cache: str) -> None:
    around: dict[str, Any] = {"name": "adablock", "inner": inner}  # no wider than a block of 8
    assert steps_of(golden_run(around, cache=cache)) == steps_of(golden_run(inner, cache=cache))


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("inner", "cache"),
    [(inner, "dual") for inner in INNER]
    + [(inner, cache) for inner in ("threshold:0.5", "slowfast:0.5") for cache in CACHES[:2]],
)
def test_blocks_of_any_length_are_decoded_in_full(inner: str, cache: str) -> None:
    around = {"name": "adablock", "inner": inner, "reach": 0.5, "delimiters": THIRD}
    around["delimiter_threshold"] = 0.1
    stream = golden_run(around, cache=cache, seed=0)
    blocks = blocks_of(stream)
    out = stream.output
    for row, lengths in enumerate(blocks):
        answer = out.sequences[row][int(out.trace.prompt_length[row]) :]
        assert golden_model("llada_gqa").spec.mask_token_id not in answer
        if inner.startswith("end_of_text"):
            continue  # may cut a row off in the middle of a block
        assert sum(lengths) == 32 == len(answer)
        assert max(lengths) <= 16
    assert len({length for lengths in blocks for length in lengths}) > 2
    refreshes = out.metrics.forwards["refresh"]
    if cache != "none" and "end_of_text" not in inner:
        assert refreshes == max(map(len, blocks))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("cache", "scheduler"), crossed(("prefix", "dual"), ("adablock", "slowfast:0.5", "dimple:0.5"))
)
def test_a_first_column_that_a_cache_commits_by_itself(cache: str, scheduler: Any) -> None:
    """The block's end is then chosen in its second forward, and rows still stand alone."""
    if scheduler == "adablock":
        scheduler = ada(inner=Threshold(0.5), delimiters=THIRD, delimiter_threshold=0.2, reach=0.5)
    model, prompts = golden_model("dream_gqa", "float32"), random_prompts(3, seed=4)
    options: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "at_eos": "ignore"}
    options |= {"scheduler": scheduler, "cache": {"name": cache, "first_token": "force"}}
    stream = dllm.stream(model, prompts, **options)
    blocks = blocks_of(stream)
    if isinstance(scheduler, AdaBlock):
        assert all(sum(lengths) == 32 for lengths in blocks)
        assert len({length for lengths in blocks for length in lengths}) > 2
    for prompt, sequence in zip(prompts, stream.output.sequences, strict=True):
        assert dllm.generate(model, [prompt], **options).sequences[0] == sequence


# On real models


def golden_row(name: str, prompt: list[int], count: int) -> Row:
    """A row whose confidences and tokens are a model's, computed alone and in full."""
    model = golden_model(name)
    mask, shift = model.spec.mask_token_id, model.spec.logit_shift

    def read(row: Row) -> Reading:
        ids = prompt + [mask if token is None else token for token in row.tokens]
        columns = torch.arange(len(ids))[None]
        plan = StepPlan("refresh", columns, columns[:, len(prompt) :] - shift, len(ids))
        with torch.inference_mode():
            logits = model.forward(torch.tensor([ids]), plan, None)[0].double()
        probability = logits.softmax(-1)
        possible = torch.arange(logits.shape[1]) != mask
        tokens = logits.where(possible, -torch.inf).argmax(-1)
        return probability.gather(1, tokens[:, None])[:, 0].tolist(), tokens.tolist()

    return Row(count, read)


def decode_row(row: Row, scheduler: Any, block: int) -> None:
    if isinstance(scheduler, AdaBlock):
        inner: Any = scheduler.inner
        decode = threshold_block(inner) if isinstance(inner, Threshold) else slowfast_block(inner)
        adaptive_blocks(row, block, decode, scheduler)
    elif isinstance(scheduler, SlowFast):
        fixed_blocks(row, block, slowfast_block(scheduler))
    else:
        dimple_row(row, scheduler)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("scheduler", "name"),
    crossed(
        (
            AdaBlock(Threshold(0.5), THIRD, 0.2, 0.5),
            AdaBlock(SlowFast(0.5, 0.2), THIRD, 0.2, 0.5),
            SlowFast(0.5, 0.2),
            SlowFast(0.5, 0.2, most_slow=3, slow="sure", early=False),
            Dimple(0.7),
            Dimple(0.9, steps=10),
            Dimple(0.9, order="first"),
        ),
        ("llada_gqa", "dream_gqa"),
    ),
)
def test_a_batch_on_a_model_agrees_with_the_rule_row_by_row(name: str, scheduler: Any) -> None:
    prompts = random_prompts(3, seed=2)
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": 12, "at_eos": "ignore"}
    options["statistics_dtype"] = torch.float64
    out = dllm.generate(golden_model(name), prompts, scheduler=scheduler, **options)
    for index, prompt in enumerate(prompts):
        row = golden_row(name, prompt, 24)
        decode_row(row, scheduler, 12)
        start = len(prompt)
        assert list(out.sequences[index][start:]) == row.tokens
        assert out.trace.commit_step[index, start : start + 24].tolist() == row.commit_step
        assert out.metrics.rows[index].forwards == row.step


# Dimple


@settings(deadline=None, max_examples=60)
@given(
    script=scripts(),
    threshold=st.sampled_from([0.4, 0.7, 0.9, 1.0]),
    steps=st.sampled_from([None, 1, 2, 5, 8, 13, 24]),
    epsilon=st.sampled_from([0.0, 1e-3, 0.25]),
    order=st.sampled_from(["confidence", "first"]),
)
def test_dimple_agrees_with_the_rule(
    script: Script, threshold: float, steps: int | None, epsilon: float, order: Any
) -> None:
    scheduler = Dimple(threshold, steps, order, epsilon)
    rows = script.rows()
    for row in rows:
        dimple_row(row, scheduler)
    found, _ = script.run(scheduler, block=max(script.counts))
    assert found == [row.commit_step for row in rows]


def counts_of(steps: list[int]) -> list[int]:
    return [steps.count(step) for step in range(max(steps) + 1)]


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        # Eight slots fall by 8 (1 - epsilon) / steps a step, and what is due is rounded down.
        ({"steps": 8, "epsilon": 0.0}, [1] * 8),
        ({"steps": 4, "epsilon": 0.0}, [2] * 4),
        ({"steps": 2, "epsilon": 0.0}, [4, 4]),
        ({"steps": 3, "epsilon": 0.0}, [2, 3, 3]),  # after 8/3 and 16/3
        ({"steps": 1}, [8]),
        ({"steps": 4}, [1, 2, 2, 3]),  # after 1.998, 3.996, 5.994; the last takes all
        # Of 7.992 none is due at the first time: the second is taken, without a forward of its
        # own. From then on a step is one ahead of its time, until the grid ends with two.
        ({"steps": 8}, [1, 1, 1, 1, 1, 1, 2]),
        ({}, [1, 1, 1, 1, 1, 1, 2]),
        ({"order": "first"}, [1] * 8),
    ],
)
def test_what_the_grid_asks_for(options: dict[str, Any], counts: list[int]) -> None:
    script = example([0.5 - slot / 100 for slot in range(8)])
    steps, _ = script.run(Dimple(threshold=1.0, **options), block=8)
    assert counts_of(steps[0]) == counts
    assert steps[0] == sorted(steps[0])  # the most confident are on the left


def test_columns_above_the_threshold_go_together_wherever_they_are() -> None:
    first = [0.5, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9]
    script = example(first, [0.6] * 8, [0.9] * 8)
    scheduler = Dimple(threshold=0.7, steps=8, epsilon=0.0)
    # Six of eight are left, which is where the grid is after two steps: the third takes one.
    assert script.run(scheduler, block=2)[0] == [[1, 0, 2, 2, 2, 2, 2, 0]]
    script = example(first, [0.6] * 8, [0.6] * 8, [0.9] * 8)
    assert script.run(scheduler, block=2)[0] == [[1, 0, 2, 3, 3, 3, 3, 0]]


@pytest.mark.parametrize(
    ("order", "column"), [("first", 0), ("confidence", 1), ("margin", 2), ("entropy", 3)]
)
def test_the_fallback_ranks_by_its_order(order: str, column: int) -> None:
    each = [[0.4, 0.3, 0.3, 0], [0.62, 0.3, 0.08, 0], [0.55, 0.15, 0.15, 0.15], [0.6, 0.4, 0, 0]]
    logits = torch.tensor([each]).clamp(min=1e-9).log()
    candidates = Candidates(logits, logits.argmax(-1))
    commit = decide(create(f"dimple:1.0,order={order}"), candidates).commit
    assert commit.nonzero().tolist() == [[0, column]]


def test_a_random_order_belongs_to_the_row_and_its_seed() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    options: dict[str, Any] = {"max_new_tokens": 12, "block_length": 4, "at_eos": "ignore"}
    options["scheduler"] = Dimple(threshold=1.0, order="random", epsilon=0.0)

    def orders(rows: list[int], seeds: list[int]) -> dict[int, list[int]]:
        out = dllm.generate(model, [prompts[row] for row in rows], seed=seeds, **options)
        steps = out.trace.commit_step.tolist()
        cut = (steps[at][len(prompts[row]) :][:12] for at, row in enumerate(rows))
        return dict(zip(rows, cut, strict=True))

    together = orders([2, 0, 1], [9, 7, 8])
    assert together == {**orders([0], [7]), **orders([1], [8]), **orders([2], [9])}
    assert all(sorted(steps) == list(range(12)) for steps in together.values())
    assert orders([0], [8]) != orders([0], [7])


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_with_a_cache_dimple_commits_where_the_pass_computed_logits(cache: str) -> None:
    stream = golden_run(Dimple(0.5), cache=cache)
    ahead = 0
    start = stream.canvas.block_start
    for event in stream:
        end = (start + 8)[:, None]
        beyond = event.committed & (event.columns >= end)
        ahead += int(beyond.sum())
        if cache == "dual" and event.kind == "step":
            assert not beyond.any()
        start = stream.canvas.block_start.clone()
    assert ahead > 0
    assert golden_model("llada_gqa").spec.mask_token_id not in stream.output.sequences[0]


# SlowFast


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    script=scripts(),
    scheduler=st.sampled_from(
        [
            create("slowfast@paper"),
            create("slowfast@code"),
            SlowFast(0.6, 0.3, most_slow=1),
            SlowFast(0.6, 0.3, most_slow=3, window=3, variance=4.0),
            SlowFast(0.6, 0.3, most_slow=2, window=3),  # never three notes
            SlowFast(0.6, 0.3, most_slow=5, slow="sure"),
            SlowFast(0.6, 0.3, most_slow=5, early=False),
        ]
    ),
    block=st.integers(1, 20),
)
def test_slowfast_agrees_with_the_rule(script: Script, scheduler: SlowFast, block: int) -> None:
    block = min(block, max(script.counts))
    rows = script.rows()
    for row in rows:
        spans: list[tuple[int, int]] = []
        fixed_blocks(row, block, slowfast_block(scheduler, spans))
        assert all(start < end for start, end in spans)
        following = pairwise(spans)
        assert all(end == start or start % block == 0 for (_, end), (start, _) in following)
    steps, _ = script.run(scheduler, block)
    assert steps == [row.commit_step for row in rows]


def test_a_span_whose_end_holds_still_is_decoded_fast() -> None:
    """Two notes of 4: the span is the first four slots; the next ends at the block's end."""
    low, high = [0.2, 0.5, 0.2, 0.4] + [0.05] * 4, [0.9, 0.5, 0.9, 0.9] + [0.95] * 4
    script = example(low, low, high, high, [0.3] * 8)
    # Forwards 0 and 1 are slow: slots 1 and 3; forward 2 is fast: 0 and 2, though what stands
    # behind is surer. In forward 3 a slow phase begins, of one column a step.
    steps = script.run(SlowFast(), block=8)[0][0]
    assert steps == [2, 0, 2, 1, 3, 4, 5, 6]


def test_an_end_that_moves_is_averaged_after_the_last_slow_step() -> None:
    """Notes of 8, 3 and 6 with two kept: their mean 4.5 is rounded down."""
    first = [0.5, 0.4, 0.3, 0.05, 0.05, 0.05, 0.05, 0.2]
    second = [0.5, 0.4, 0.3, 0.05, 0.05, 0.05, 0.05, 0.05]
    third = [0.5, 0.4, 0.3, 0.05, 0.05, 0.2, 0.05, 0.05]
    script = example(first, second, third, *[[0.95] * 8] * 5)
    # Slow: 0, 1, 2; fast: slot 3 alone, of the four; then slow again, from slot 4 on.
    steps = script.run(SlowFast(most_slow=3), block=8)[0]
    assert steps == [[0, 1, 2, 3, 4, 5, 6, 6]]


def test_the_two_presets_differ_in_their_slow_steps() -> None:
    script = example(*[[0.95] * 4 + [0.05] * 4] * 8)
    paper = script.run(create("slowfast@paper"), block=8)[0][0]
    code = script.run(create("slowfast@code"), block=8)[0][0]
    assert paper[:4] == [0, 1, 2, 2]  # two slow steps, then all that is sure
    assert code[:4] == [0, 0, 0, 0]  # at once


def test_rows_are_in_phases_of_their_own() -> None:
    still, moving = [0.2] * 4 + [0.05] * 4, [0.2] * 8
    confidence = torch.tensor(
        [[still, still, [0.9] * 8, [0.9] * 8], [moving, still, moving, [0.9] * 8]],
        dtype=torch.float64,
    )
    script = Script([8, 8], confidence, torch.full((2, 4, 8), WORD))
    steps, _ = script.run(SlowFast(), block=8)
    assert [row.count(2) for row in steps] == [2, 1]  # fast beside slow
    rows = script.rows()
    for row in rows:
        fixed_blocks(row, 8, slowfast_block(SlowFast()))
    assert steps == [row.commit_step for row in rows]


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", CACHES)
def test_degenerate_slowfast(cache: str) -> None:
    one_by_one = steps_of(golden_run("fixed_quota", cache=cache))
    assert steps_of(golden_run("slowfast:1.0,low=1", cache=cache)) != one_by_one  # left to right
    assert steps_of(golden_run("slowfast:0.5,most_slow=99,early=false", cache=cache)) == one_by_one
    at_once = steps_of(golden_run("threshold:0", cache=cache))
    sure = steps_of(golden_run("slowfast:0,slow=sure", cache=cache))
    assert sure == at_once


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adablock", {"reach": 0.0}, r"reach=0.0 must be in \(0, 1\]"),
        ("adablock", {"reach": 1.5}, "reach=1.5"),
        ("adablock", {"inner": "multi_block"}, "inner='multi_block' commits in several blocks"),
        ("adablock", {"inner": "ete"}, "inner='ete' commits in several blocks"),
        ("adablock", {"inner": "lopa"}, "inner='lopa' commits in several blocks"),
        ("adablock", {"inner": "prophet"}, "prophet:inner=adablock"),
        ("adablock", {"delimiter": 3}, "delimiters"),
        ("dimple", {"steps": 0}, "steps=0 must be at least 1"),
        ("dimple", {"epsilon": 1.0}, r"epsilon=1.0 must be in \[0, 1\)"),
        ("dimple", {"epsilon": -0.1}, "epsilon=-0.1"),
        ("dimple", {"order": "best"}, "order='best'"),
        ("slowfast", {"window": 1}, "window=1 must be at least 2"),
        ("slowfast", {"most_slow": 0}, "most_slow=0"),
        ("slowfast", {"slow": "both"}, "slow='both'"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create({"name": name, **options})


def test_a_method_of_the_whole_row_goes_around_however_deep_it_stands() -> None:
    deep = EndOfText(Prophet(Threshold()))
    with pytest.raises(ValueError, match="inner='prophet' acts on the whole row"):
        AdaBlock(deep)
    with pytest.raises(ValueError, match="end_of_text:inner=adablock"):
        AdaBlock(EndOfText(Threshold(), rule="predicted"))
    assert Prophet(AdaBlock(EndOfText(Threshold()))).stateless


def test_a_filter_must_be_as_wide_as_the_longest_block() -> None:
    """Its 16 columns serve half of 32 slots, not three quarters."""
    learned = {"name": "learn2pd", "filter": FILTER, "threshold": 0.6}
    scheduler: Any = {"name": "adablock", "inner": learned, "delimiters": THIRD, "reach": 0.5}
    stream = golden_run(scheduler)
    assert [sum(lengths) for lengths in blocks_of(stream)] == [32] * 3
    reason = "reach=0.75 has blocks of up to 24 columns: filter .* up to 16 columns"
    with pytest.raises(ValueError, match=reason):
        golden_run({**scheduler, "reach": 0.75})
    with pytest.raises(ValueError, match=r"^filter .* up to 16 columns, not block_length=32"):
        golden_run(scheduler, block_length=32)
    with pytest.raises(ValueError, match=r"reach=0.75 .* up to 16 columns"):
        golden_run({**scheduler, "reach": 0.75, "inner": {"name": "end_of_text", "inner": learned}})


def test_errors_of_the_inner_scheduler_are_its_own() -> None:
    with pytest.raises(ValueError, match=r"^steps=6 is the total"):
        golden_run("adablock:inner=fixed_quota:6")
    with pytest.raises(ValueError, match="logit_shift=1"):
        dllm.stream(golden_model("dream_gqa"), [[1, 2]], scheduler="adablock:inner=wino")
