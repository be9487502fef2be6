"""Laws on random combinations of models, methods and settings; what fails is printed as a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.constraints import Ends
from dllm.generate import Stream
from dllm.models import save
from dllm.output import GenerationOutput
from dllm.schedulers import Needs
from dllm.state.canvas import NEVER
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.fuzz import COMMON, Combination, Draw, Language, fuzzed_model
from tests.support.marks import SLOW, WHOLE
from tests.support.models import MODELS

CHUNKS, SIZE, FAST = 30, 52, 4
EVERY = 3  # one chunk in so many is in the slow suite, the others run with the whole
MOST_REFUSED = 200  # draws one after the other; most of those refused are so for `steps`


class Counted:
    """A model that counts its passes and what they feed."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.passes = self.rows = self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        self.passes += 1
        self.rows += tokens.shape[0]
        self.tokens += tokens.numel()
        logits: Tensor = self.model.forward(tokens, plan, store)
        return logits


def accepted(draw: Callable[[], Combination]) -> tuple[Combination, Stream, Counted]:
    """Returns a combination that is not refused, about to run; a refusal has run no pass."""
    for _ in range(MOST_REFUSED):
        drawn = draw()
        if is_endless(drawn):
            continue
        counted = Counted(fuzzed_model(drawn.model))
        model: Any = counted
        refusal = ""
        try:
            running = dllm.stream(model, drawn.prompts, **drawn.options)
        except (ValueError, TypeError) as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{error!r} instead of a refusal\n{drawn}") from error
        if not refusal:
            return drawn, running, counted
        assert len(refusal) > 30, f"{refusal!r} gives no reason\n{drawn}"
        assert counted.passes == 0, f"refused after {counted.passes} passes\n{drawn}"
    raise AssertionError(f"{MOST_REFUSED} draws were refused one after the other")


def is_endless(drawn: Combination) -> bool:
    """Whether a call asks for a million passes, most of which commit nothing."""
    scheduler = drawn.options["scheduler"]
    while isinstance(scheduler, dict):
        runs = scheduler.get("algorithm") == "origin" or scheduler.get("empty_steps")
        if runs and (scheduler.get("steps") or 0) > SIZE:
            return True
        if (scheduler.get("post_steps") or 0) > SIZE:  # edits that take turns go on as long
            return True
        scheduler = scheduler.get("inner")
    return False


def check_chunk(draw: Callable[[], Combination], count: int, folder: Path) -> None:
    for number in range(count):
        drawn, running, counted = accepted(draw)
        try:
            check(drawn, running, counted)
            if number % 10 == 0 and drawn.model in MODELS:
                check_saved(drawn, folder)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{text}\n\nthe combination:\n{drawn}") from error


def check(drawn: Combination, running: Stream, counted: Counted) -> None:
    shown, written = played(running)
    out = running.output
    check_rows(drawn, out)
    check_languages(drawn, out)
    check_events(out, shown)
    check_events(out, written)
    check_metrics(drawn, out, counted)
    check_alone(drawn, out)
    if is_exact(running):
        plain = generate(drawn, drawn.options | {"cache": "none"})
        assert plain.sequences == out.sequences, "an exact cache changes tokens"


def generate(drawn: Combination, options: dict[str, Any]) -> GenerationOutput:
    return dllm.generate(fuzzed_model(drawn.model), drawn.prompts, **options)


Columns = dict[tuple[int, int], int]  # prompt, column -> token


def played(running: Stream) -> tuple[Columns, Columns]:
    """Runs a stream; returns what its steps showed last of each column, and what they wrote."""
    shown: Columns = {}
    written: Columns = {}
    for event in running:
        changed = (event.committed | event.remasked).tolist()
        rows = zip(event.prompts, event.columns.tolist(), event.tokens.tolist(), strict=True)
        for (prompt, columns, tokens), wrote in zip(rows, changed, strict=True):
            for column, token, new in zip(columns, tokens, wrote, strict=True):
                shown[prompt, column] = token
                if new:
                    written[prompt, column] = token
    return shown, written


def check_rows(drawn: Combination, out: GenerationOutput) -> None:
    """Prompts and given text stand where they stood, and no mask is left."""
    mask = fuzzed_model(drawn.model).spec.mask_token_id
    fixed: dict[int, int] = drawn.options.get("fixed", {})
    for prompt, sequence in zip(drawn.prompts, out.sequences, strict=True):
        assert mask not in sequence, "a mask is left"
        for column, token in enumerate(prompt[: len(sequence)]):
            assert token in (mask, sequence[column]), f"column {column} of the prompt changed"
        for offset, token in fixed.items():
            column = len(prompt) + offset
            assert column >= len(sequence) or sequence[column] == token, f"fixed {offset} changed"


def check_languages(drawn: Combination, out: GenerationOutput) -> None:
    """The tokens of a row's slots, with what was given among them, are in its language."""
    spec, options = fuzzed_model(drawn.model).spec, drawn.options
    ends = tuple(options.get("eos_token_id", spec.eos_token_ids))
    pads = tuple({spec.pad_token_id} - {*ends, spec.mask_token_id})
    for row, language in enumerate(options.get("constraint", ())):
        if language is not None:
            prompt = drawn.prompts[row]
            first = prompt.index(spec.mask_token_id) if options.get("infill") else len(prompt)
            automaton = language.at(None, Ends(ends, pads, spec.vocab_size))
            assert automaton.accepts(list(out.sequences[row][first:])), f"row {row}: {language}"


def check_events(out: GenerationOutput, columns: Columns) -> None:
    """What a stream shows or writes is what stands there in the end."""
    for row, sequence in enumerate(out.sequences):
        committed = (out.trace.commit_step[row] != NEVER).nonzero().flatten().tolist()
        for column in committed:
            assert columns.get((row, column)) == sequence[column], f"row {row}, column {column}"


def check_metrics(drawn: Combination, out: GenerationOutput, counted: Counted) -> None:
    """Figures are those of a model that counts by itself."""
    metrics, times = out.metrics, 2 if drawn.options.get("guidance_scale") else 1
    verifier = drawn.options.get("verifier") or {}
    execution = verifier.get("execution", "batch")
    assert metrics.tokens_fed * times == counted.tokens, "tokens_fed"
    if execution != "sequential":  # which counts as one pass what it runs one after the other
        assert metrics.num_forwards == counted.passes, "num_forwards"
        assert len(metrics.fed) == counted.passes, "fed"
    if execution != "tree":
        assert metrics.rows_fed * times == counted.rows, "rows_fed"
    for row, sequence in zip(metrics.rows, out.sequences, strict=True):
        assert 0 <= row.valid_tokens <= len(sequence) - row.prompt_tokens
        assert row.forwards <= row.row_forwards
        assert row.finish_reason in ("eos", "length")


def check_alone(drawn: Combination, out: GenerationOutput) -> None:
    """The last row is what it is alone, under the other way of decoding."""
    row = len(drawn.prompts) - 1
    seed = drawn.options["seed"]
    own = seed[row] if isinstance(seed, list) else seed + row
    options = {**drawn.options, "seed": own}
    options.pop("batch_size", None)
    if "constraint" in options:
        options["constraint"] = [options["constraint"][row]]
    alone = dllm.generate(fuzzed_model(drawn.model), [drawn.prompts[row]], **options)
    assert alone.sequences[0] == out.sequences[row], "a row depends on its batch"
    verifier = drawn.options.get("verifier") or {}
    if not verifier.get("margin_guard"):  # whose doubt about one row has all rows wait
        assert alone.metrics.rows[0] == out.metrics.rows[row], "figures depend on the batch"


def needs_of(running: Stream) -> Needs:
    layout = running.canvas.layout
    return running.scheduler.needs(layout.num_slots, layout.block_length)


def is_exact(running: Stream) -> bool:
    """Whether the law of its cache says that a combination equals decoding without one."""
    cache = running.cache.summary()
    needs = needs_of(running)
    narrow = not needs.whole_row and needs.window <= running.canvas.layout.block_length
    if cache["name"] == "block_causal":
        return cache["first_token"] == "feed" and narrow
    if cache["name"] == "streaming":
        return narrow
    if cache["name"] == "linear":  # what a verifier puts in the place of either of its caches
        return True
    if cache["name"] == "encoder":
        return not cache["again"] and narrow
    if cache["name"] in ("prefix", "dual"):
        return cache["refresh_every"] == 1 and cache["first_token"] == "feed" and narrow
    if cache["name"] == "dkv":
        return bool(cache["refresh"] == 1 and cache["prompt"] == "refresh")
    return False


@cache
def saved(name: str, folder: Path) -> dllm.HostedModel:
    save(fuzzed_model(name), folder / name)
    return dllm.load(folder / name)


def check_saved(drawn: Combination, folder: Path) -> None:
    """A model that was written and read again decodes the same."""
    with torch.inference_mode(False):
        model = saved(drawn.model, folder)
    again = dllm.generate(model, drawn.prompts, **drawn.options)
    assert again.sequences == generate(drawn, drawn.options).sequences, "not the same once saved"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def chunks(count: int) -> list[Any]:
    """Returns seeds as parameters."""
    return [pytest.param(seed, marks=WHOLE if seed % EVERY else SLOW) for seed in range(count)]


@pytest.mark.parametrize("seed", chunks(CHUNKS))
def test_laws_hold_for_random_combinations(seed: int, folder: Path) -> None:
    check_chunk(Draw(seed).combination, SIZE, folder)


@pytest.mark.parametrize("seed", chunks(CHUNKS // 6))
def test_laws_hold_in_random_languages(seed: int, folder: Path) -> None:
    check_chunk(Draw(seed).in_languages, SIZE, folder)


def test_columns_that_rounding_alone_moves_are_not_preferred() -> None:
    """Values that are the same but for rounding, which the other rows of a batch decide."""
    options: dict[str, Any] = {
        "max_new_tokens": 8,
        "block_length": 4,
        "scheduler": {
            "name": "dimple",
            "steps": 48,
            "order": "entropy",
            "epsilon": 0.061736382660106726,
        },
        "cache": {"name": "dllm_cache", "prompt_every": 4, "adaptive": 0.7496610348073028},
        "seed": 0,
        "eos_token_id": list(COMMON),
        "at_eos": "block",
        "batch_size": 2,
        "constraint": [None, None, None, Language(149131)],
        "top_p": 1e-09,
        "top_k": 20,
    }
    prompts = [
        [64, 82, 78, 54, 14, 6, 8, 8, 39, 78, 53],
        [47, 42, 73, 11, 18, 71, 72, 56, 64, 53, 28, 70, 32],
        [43, 83, 39, 22, 5, 14, 12, 56, 15, 60, 89, 44, 35, 15],
        [48, 15, 21, 66, 68, 57, 64, 11, 63, 43, 72],
    ]
    drawn = Combination("nemotron spoken", prompts, options)
    check_alone(drawn, generate(drawn, options))


def test_laws_hold_for_a_few_random_combinations(folder: Path) -> None:
    check_chunk(Draw(CHUNKS).combination, FAST, folder)
    check_chunk(Draw(CHUNKS).in_languages, FAST, folder)
