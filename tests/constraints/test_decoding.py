"""Decoding under a constraint: never stuck, in the language, and by itself in each row."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dllm
from dllm.constraints import Choice, Constraint, ConstraintSpan, Ends, Regex
from dllm.constraints.automaton import TokenAutomaton
from dllm.constraints.language import language_of, shortest_length
from tests.support.languages import Spelled, automaton_of, random_automaton, universal
from tests.support.laws import options_of, refusal, suited, transfers_of
from tests.support.marks import crossed, some
from tests.support.models import golden_model, model_of, random_prompts
from tests.support.verified import OF_STEPS

NAME = "llada_mha"
SLOTS: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8}
AT_EOS = ("ignore", "stop", "skip", "block", "truncate")


def spoken(name: str = NAME) -> Any:
    """Returns a golden model with a tokenizer, which writes the numbers of tokens."""
    numbers = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
    return replace(golden_model(name), tokenizer=numbers)  # type: ignore[arg-type]


def over_the_model(constraint: Constraint) -> TokenAutomaton:
    spec = golden_model(NAME).spec
    padding = {spec.pad_token_id} - {*spec.eos_token_ids}
    return constraint.at(None, Ends(spec.eos_token_ids, tuple(padding), spec.vocab_size))  # type: ignore[arg-type]


def random_constraint(rng: np.random.Generator) -> Constraint:
    """Returns a constraint that some text of up to 24 tokens fulfils."""
    while True:
        made = Spelled(random_automaton(rng, 4))
        known = language_of(over_the_model(made), golden_model(NAME).spec.vocab_size)
        if len(made.inner.table) > 2 and shortest_length(known) is not None:
            return made


def constraints_of(seed: int, count: int) -> list[Constraint | None]:
    """Returns a constraint for each prompt, and none for some."""
    rng = np.random.default_rng(seed)
    return [random_constraint(rng) if rng.random() < 0.8 else None for _ in range(count)]


def check_rows(output: Any, prompts: list[list[int]], asked: list[Constraint | None]) -> None:
    """Raises AssertionError where a row is not in its language, to the last slot."""
    for ids, prompt, constraint in zip(output.sequences, prompts, asked, strict=True):
        answer = list(ids[len(prompt) :])
        assert len(answer) == SLOTS["max_new_tokens"]
        assert constraint is None or over_the_model(constraint).accepts(answer)


def takes(scheduler: str) -> bool:
    """Returns whether a scheduler goes with a constraint on the model."""
    try:
        model, options = suited(spoken(), scheduler), options_of(scheduler, **SLOTS)
        dllm.stream(model, [[1]], constraint=everything(), **options)
    except ValueError:
        return False
    return True


def everything() -> Constraint:
    return Spelled(universal(1))


SCHEDULERS = [name for name in dllm.schedulers.registry.names() if takes(name)]
CACHES = [one for one in dllm.cache.registry.names() if not refusal(NAME, "threshold", one)]
REFUSED = {"daedal", "dreamon", "end_of_text", "ete", "info_gain", "insert_delete", "lopa"}
REFUSED |= {"rho_eos"}


def test_few_schedulers_are_refused() -> None:
    """All others that serve the model at all take constraints."""
    serve = {name for name in dllm.schedulers.registry.names() if not refusal(NAME, name, "none")}
    assert serve - set(SCHEDULERS) == REFUSED


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refusal_names_the_scheduler(name: str) -> None:
    model, options = suited(spoken(), name), options_of(name, **SLOTS)
    with pytest.raises(ValueError, match=f"constraint refuses scheduler '{name}': it "):
        dllm.stream(model, [[1]], constraint=everything(), **options)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_is_ever_stuck(scheduler: str) -> None:
    check_never_stuck(scheduler, [SCHEDULERS.index(scheduler)])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seeds",
    [range(100, 112), pytest.param(range(112, 140), marks=pytest.mark.whole)],
    ids=lambda seeds: f"{len(seeds)} seeds",
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_is_ever_stuck_in_many_more(scheduler: str, seeds: range) -> None:
    check_never_stuck(scheduler, seeds)


@pytest.mark.parametrize("scheduler", some(SCHEDULERS, every=9))
def test_the_most_probable_text_is_never_stuck(scheduler: str) -> None:
    check_never_stuck(scheduler, (2, 4), joint="map")


def test_a_step_waits_for_the_device_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device is not the host, what columns hold is not read: the tokens are the same."""
    prompts = random_prompts(4)
    asked = [Spelled(automaton_of([[0, 1], [1, 0]], [True, False])), None] * 2
    how: dict[str, Any] = {"constraint": asked, "scheduler": "fixed_quota", **SLOTS}
    plain = dllm.generate(spoken(), prompts, **how)
    monkeypatch.setattr("dllm.decoding.languages.constrained.on_host", lambda _: False)
    running = dllm.stream(spoken(), prompts, **how)
    events = iter(running)
    next(events)  # tables are built once
    waits = transfers_of(itertools.islice(events, 3), monkeypatch)
    monkeypatch.undo()
    for _ in events:
        pass
    assert set(waits) == {2}
    assert running.output.sequences == plain.sequences


def check_never_stuck(scheduler: str, seeds: Iterable[int], **more: Any) -> None:
    for seed in seeds:
        prompts, asked = random_prompts(3, seed), constraints_of(seed, 3)
        how: dict[str, Any] = {"temperature": seed % 2, "at_eos": AT_EOS[seed % len(AT_EOS)]}
        given = {"scheduler": scheduler, "constraint": asked, "seed": seed, **how, **SLOTS, **more}
        check_rows(dllm.generate(spoken(), prompts, **given), prompts, asked)


@pytest.mark.few(4)
@pytest.mark.parametrize(("scheduler", "cache"), crossed(["threshold:0.3", "wino"], CACHES))
def test_rows_do_not_see_each_other(scheduler: str, cache: str) -> None:
    """Rows with different languages, or none, are what each would be alone, or in less seats."""
    prompts, asked = random_prompts(4, 7), constraints_of(len(cache), 4)
    how: dict[str, Any] = {"scheduler": scheduler, "cache": cache, **SLOTS}
    together = dllm.generate(spoken(), prompts, constraint=asked, **how)
    check_rows(together, prompts, asked)
    seated = dllm.generate(spoken(), prompts, constraint=asked, batch_size=2, **how)
    assert seated.sequences == together.sequences
    for row, (prompt, constraint) in enumerate(zip(prompts, asked, strict=True)):
        alone = dllm.generate(spoken(), [prompt], constraint=constraint, **how)
        assert alone.sequences[0] == together.sequences[row]
        assert alone.metrics.rows[0] == together.metrics.rows[row]


@pytest.mark.parametrize(("verifier", "cache"), crossed(OF_STEPS, ["none", "dual", "prefix"]))
def test_a_verifier_changes_nothing(verifier: str, cache: str) -> None:
    for seed in range(2):
        prompts, asked = random_prompts(2, seed, high=9), constraints_of(seed, 2)
        how: dict[str, Any] = {"scheduler": "fixed_quota", "cache": cache, "seed": 1, **SLOTS}
        how |= {"constraint": asked, "temperature": seed}
        base = dllm.generate(spoken(), prompts, **how)
        verified = dllm.generate(spoken(), prompts, verifier=verifier, **how)
        assert verified.sequences == base.sequences
        assert [it.forced for it in verified.metrics.rows] == [
            it.forced for it in base.metrics.rows
        ]
        assert sum(it.forwards for it in verified.metrics.rows) <= sum(
            it.forwards for it in base.metrics.rows
        )


@pytest.mark.few(5)
@pytest.mark.parametrize(("scheduler", "temperature"), crossed(SCHEDULERS, [0, 1]))
def test_a_language_of_everything_changes_no_bit(scheduler: str, temperature: float) -> None:
    """The mask token is in it too: it stays in the softmax, as without a constraint."""

    class Everything(Spelled):
        def at(self, tokenizer: Any, ends: Ends | None = None) -> TokenAutomaton:
            assert ends is not None
            assert ends.vocab_size is not None
            return universal(ends.vocab_size)

    prompts = random_prompts(2, 3)
    how: dict[str, Any] = {"scheduler": scheduler, "temperature": temperature, "seed": 5, **SLOTS}
    plain = list(dllm.stream(spoken(), prompts, **how))
    held = list(dllm.stream(spoken(), prompts, constraint=Everything(universal(1)), **how))
    assert len(plain) == len(held)
    exactly: dict[str, Any] = {"rtol": 0, "atol": 0, "equal_nan": True}
    for one, other in zip(plain, held, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.confidence, other.confidence, **exactly)


def test_a_stream_is_what_generate_returns() -> None:
    prompts, asked = random_prompts(3, 2), constraints_of(4, 3)
    running = dllm.stream(spoken(), prompts, constraint=asked, **SLOTS)
    for _ in running:
        pass
    assert (
        running.output.sequences
        == dllm.generate(spoken(), prompts, constraint=asked, **SLOTS).sequences
    )


def test_commits_that_exclude_each_other_wait() -> None:
    """`ab|ba` of two slots: whatever one step commits, aa and bb are no answer."""
    clash = Spelled(automaton_of([[1, 2], [-1, 3], [3, -1], [-1, -1]], [False] * 3 + [True]))
    for seed in range(6):
        output = dllm.generate(
            spoken(),
            random_prompts(1, seed),
            max_new_tokens=2,
            scheduler="threshold:0.001",
            constraint=clash,
        )
        answer = [token % 2 for token in output.sequences[0][-2:]]
        assert sorted(answer) == [0, 1]
        assert output.metrics.rows[0].forwards + output.metrics.rows[0].forced >= 1


def test_what_is_forced_takes_no_steps() -> None:
    """Of one text all tokens are the only ones: the first pass commits them, and counts them."""
    text = "tom buys 12 pens"
    output = dllm.generate(
        model_of("tiny"),
        "3 + 4 =",
        max_new_tokens=16,
        block_length=16,
        scheduler="fixed_quota:steps=16",
        constraint=Choice((text,)),
        at_eos="ignore",
    )
    assert output.texts == (text,)
    assert output.metrics.num_forwards < 6
    assert output.metrics.rows[0].forced > 8


@pytest.mark.parametrize("spare", [False, True])
def test_nan_at_a_token_that_may_not_come_is_found(
    spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one row of two, by a host as by a device."""
    monkeypatch.setattr("dllm.decoding.languages.constrained.on_host", lambda _: spare)
    inner, texts = model_of("tiny"), ["3 + 4 =", "tom has 3 pens"]
    assert inner.tokenizer is not None
    (letter,) = inner.tokenizer("z", add_special_tokens=False).input_ids

    def broken(tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.randn(len(tokens), tokens.shape[1], inner.spec.vocab_size)
        logits[1, :, letter] = torch.nan
        return logits

    model = dllm.wrap(broken, vocab_size=inner.spec.vocab_size, tokenizer=inner.tokenizer)
    how: dict[str, Any] = {"constraint": Regex("[0-9]{4}"), "max_new_tokens": 8}
    with pytest.raises(dllm.BrokenLogitsError, match=r"row\(s\) \[1\]") as caught:
        dllm.generate(model, texts, **how)
    assert caught.value.partial is not None
    assert letter not in caught.value.partial.sequences[1]


@pytest.mark.parametrize("n", [1, 2])
def test_answers_of_a_tokenizer(n: int) -> None:
    asked = [Regex("[0-9]{2,4}"), None, Regex("(tom|amy) (buys|sells) [0-9]{1,3} (pens|cups)")]
    prompts = ["3 + 4 =", "5 + 6 =", "tom has 3 pens"]
    how: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "n": n, "temperature": n - 1}
    output = dllm.generate(model_of("tiny"), prompts, constraint=asked, seed=1, **how)
    assert output.texts is not None
    for number, text in enumerate(output.texts):
        constraint = asked[number // n]
        assert constraint is None or constraint.byte_automaton().accepts(text.encode())


def test_a_span_is_filled_to_its_last_slot() -> None:
    span = ConstraintSpan(Regex("[0-9]{3}"), 4, 7)
    output = dllm.generate(
        model_of("tiny"), ["3 + 4 ="] * 2, max_new_tokens=16, constraint=span, at_eos="ignore"
    )
    tokenizer = model_of("tiny").tokenizer
    assert tokenizer is not None
    for ids in output.sequences:
        assert str(tokenizer.decode(list(ids[-12:-9]))).isdecimal()


def test_given_text_is_part_of_the_answer() -> None:
    output = dllm.generate(
        model_of("tiny"),
        "3 + 4 =",
        max_new_tokens=6,
        fixed={2: "7"},
        constraint=Regex("[0-3]{6}|[0-9]{2}7[89]{3}"),
    )
    assert output.texts is not None
    assert output.texts[0][2] == "7"
    assert set(output.texts[0][3:]) <= set("89")


REFUSALS = [
    ({"constraint": Regex("[0-9]{40}")}, r"takes at least 40 tokens, and there are 32 slots"),
    ({"constraint": Regex("[0-9]{3}"), "forbid_eos": True}, r"no text of exactly 32 tokens"),
    ({"constraint": [Regex("1")] * 2}, "2 constraints were given for 1 prompts"),
    ({"constraint": Regex("1"), "stop": "x"}, "constraint refuses stop="),
    ({"constraint": Regex("1"), "min_new_tokens": 3}, "constraint refuses min_new_tokens=3"),
    ({"constraint": Regex("1"), "defer_eos": True}, "constraint refuses defer_eos=True"),
    ({"constraint": Regex("1+"), "fixed": {1: " x"}}, "the given text does not go with it"),
    ({"constraint": ConstraintSpan(Regex("1"), 3, 4)}, "at_eos='stop' may end a row before"),
    ({"constraint": "[0-9]"}, "must be a Constraint"),
    ({"constraint": Regex("1"), "joint": "map", "temperature": 1}, "joint='map' takes the most"),
    (
        {"joint": "map"},
        "joint='map' chooses among texts that a constraint allows, and none",
    ),
]


@pytest.mark.parametrize(("given", "message"), REFUSALS)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.stream(model_of("tiny"), "3 + 4 =", max_new_tokens=32, **given)


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokenizer to spell them"):
        dllm.stream(golden_model(NAME), [[1]], constraint=everything(), **SLOTS)
