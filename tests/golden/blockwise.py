"""Replays recordings of block-causal decoding, pass by pass, over a store of final blocks.

The authors spend a pass on the prompt and on each finished block that stores its keys and commits
nothing. Here the pass that follows is fed those columns too; where the authors take the next
block's first token from that pass, it is a pass here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dllm
from dllm.generate import Stream
from tests.golden.methods import METHODS, Case

MASK = 126
BLOCKWISE = {
    *("sdar_bd3", "sdar_generate_greedy", "sdar_generate_sampling"),
    "fast_dllm_v2_generate",
}
# The first forward that a fault of the reference decides, by recording (README.md beside this).
WRITES_OVER = {"gen_04_low_confidence_static_p21_g43_b8_s5": 2}
STALE = {
    "fv2_01_p40_n64_sb8_th0.9_bc": 25,
    "fv2_03_p20_n64_sb8_th0.8_bc": 11,
    "fv2_07_p33_n64_sb16_th0.7_bc": 16,
    "fv2_13_p63_n64_sb8_th0.95_bc": 3,
    "fv2_19_p40_n128_sb8_th0.9_bc_stop": 25,
    "fv2_21_p20_n128_sb8_th0.7_bc_stop": 13,
}


@dataclass(frozen=True)
class Pass:
    """A pass as ours is: what it is fed and commits."""

    number: int  # of the recorded forward
    fed: int
    writes: list[tuple[int, int]]  # columns and tokens, committed or written over


@dataclass(frozen=True)
class Part:
    """A stretch of a recording that runs by itself from tokens that are there."""

    prompt: list[int]
    passes: list[Pass]
    final: list[int]  # the canvas after it, masks included
    last: bool  # ends where the recording ends, else before a fault of the reference


def replay_blocks(case: Case, model: dllm.HostedModel) -> str | None:
    """Returns where a run leaves its recording; None: nowhere."""
    return replay_part(case, whole(case), model)


def started(case: Case, prompt: list[int], model: dllm.HostedModel) -> Stream:
    """Returns a run with the settings of a recording, whose block is that of the model."""
    own = METHODS[case["method"]]({**case, "prompt": prompt})
    hosted = replace(model, spec=replace(model.spec, block_length=own["block_length"]))
    return dllm.stream(hosted, [prompt], statistics_dtype="float64", **own)


def replay_part(case: Case, part: Part, model: dllm.HostedModel) -> str | None:
    """Returns where a run that begins as a part of a recording leaves it; None: nowhere."""
    running = started(case, part.prompt, model)
    ended = True
    for num_passes, _ in enumerate(running, 1):
        if num_passes == len(part.passes) and not (part.last and ends_itself(case)):
            ended = False  # the authors' last pass, or the last before what they do wrongly
            break
    out = running.output
    got = [sorted(step) for step in out.trace.commits(0)]
    for fed, ours, recorded in zip(out.metrics.fed, got, part.passes, strict=False):
        if fed != recorded.fed:
            return f"pass {recorded.number} feeds {fed} columns, not {recorded.fed}"
        if ours != recorded.writes:
            return f"pass {recorded.number} writes {ours}, not {recorded.writes}"
    if out.metrics.num_forwards != len(part.passes):
        return f"{out.metrics.num_forwards} passes, not {len(part.passes)}"
    fill = running.canvas.layout.fill_token_id if ended else MASK
    tokens = running.canvas.tokens[0, : len(part.final)].tolist()
    expected = [fill if token == MASK else token for token in part.final]
    return None if tokens == expected else f"tokens {tokens} != {expected}"


def ends_itself(case: Case) -> bool:
    """Whether a run ends with the recording; else ours would begin a further block."""
    return case["method"] != "fast_dllm_v2_generate" or case["args"]["stop_token"] >= 0


def whole(case: Case) -> Part:
    """Returns a recording from its beginning to its end, its faults included."""
    return Part(case["prompt"], passes_of(case["trace"]), case["final"], last=True)


def passes_of(trace: list[dict[str, Any]]) -> list[Pass]:
    """Returns recorded forwards as passes: what only stores is fed with the pass after it."""
    passes, unfed = [], 0
    for step in trace:
        writes = sorted((place, token) for place, token in step["commits"] + step.get("edits", []))
        writes += seeded(step)
        unfed += step["input_len"]
        if writes:
            passes.append(Pass(step["step"], unfed, writes))
            unfed = 0
    return passes


def stores(step: dict[str, Any]) -> bool:
    """Whether a forward stores final keys: of the prompt, or of a finished block."""
    return bool(step.get("store_kv")) or step.get("kind") in ("prefill", "store")


def seeded(step: dict[str, Any]) -> list[tuple[int, int]]:
    """Returns the first token of the next block, where a forward that stores proposes it."""
    first = step.get("appended", [MASK])[0]
    return [] if first == MASK else [(step["len_before"], first)]


def parts(case: Case) -> Iterator[Part]:
    """Yields the stretches between the faults of a recording: all of it where it has none."""
    trace, begin, canvas = case["trace"], 0, list(case["prompt"])
    faulty = list(faults(case))
    for start, end in [*faulty, (len(trace), len(trace))]:
        prompt = canvas[: canvas.index(MASK)] if MASK in canvas else list(canvas)
        for step in trace[begin:start]:
            advance(canvas, step)
        last = start == len(trace)
        if passes_of(trace[begin:start]):
            passes = passes_of(trace[begin:start])
            if begin:  # what was stored before is not in the store of a run that begins here
                stored = trace[begin]["past_len"]
                passes[0] = replace(passes[0], fed=passes[0].fed + stored)
            yield Part(prompt, passes, case["final"] if last else list(canvas), last)
        for step in trace[start:end]:
            advance(canvas, step)
        begin = end


def advance(canvas: list[int], step: dict[str, Any]) -> None:
    """Writes what a forward did into a canvas that is as long as has been written so far."""
    writes = step["commits"] + step.get("edits", []) + seeded(step)
    longest = max((place + 1 for place, _ in writes), default=0)
    canvas += [MASK] * (longest - len(canvas))
    for place, token in writes:
        canvas[place] = token


def faults(case: Case) -> Iterator[tuple[int, int]]:
    """Yields the forwards [from, to) that a fault of the reference decided."""
    trace = case["trace"]
    for number, step in enumerate(trace):
        if step.get("edits"):  # SDAR writes over tokens; the block is what it is from there on
            yield number, next(n for n in range(number, len(trace)) if trace[n]["store_kv"]) + 1
        # Fast-dLLM v2 begins a block over what the last one left in its block cache.
        stale = number and stores(trace[number - 1]) and step.get("kind") == "sub_block_cached"
        if stale and step["input_len"] < case["args"]["block_size"]:
            rest = range(number, len(trace))
            cached = (n for n in rest if trace[n]["kind"] != "sub_block_cached")
            yield number, next(cached, len(trace))
