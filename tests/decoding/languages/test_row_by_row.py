"""Rows that are asked about token by token: in the language, by themselves, never stuck."""

from __future__ import annotations

import random
from typing import Any

import pytest
from lark import Lark

import dllm
from dllm.constraints import ConstraintSpan, Grammar, Regex
from dllm.decoding.languages.one_row import Outcome, Proposal, Turn, UnfillableRowError, take
from tests.support.grammars import Rows
from tests.support.marks import crossed, some

GRAMMARS = {
    "brackets": 'start: "(" start ")" start |',
    "sums": 'start: start "+" start | "(" start ")" | /[0-9]+/',
    "values": """
        start: list | /[0-9]+/ | "null"
        list: "[" [start ("," start)*] "]"
        %ignore " "
    """,
}
PROMPTS = ["zoe has 62 eggs.", "tom has 3", "12 + 5"]
SLOTS: dict[str, Any] = {"max_new_tokens": 20, "block_length": 8, "temperature": 2.0, "seed": 5}


def asked(name: str) -> Grammar:
    return Grammar(GRAMMARS[name], method="emptiness")


def check_text(name: str, text: str) -> None:
    """Raises LarkError where a text is not in the language."""
    Lark(GRAMMARS[name], parser="earley", lexer="dynamic_complete").parse(text)


def goes(**options: Any) -> bool:
    try:
        dllm.stream(tiny(), ["x"], **{"constraint": asked("brackets"), **SLOTS, **options})
    except ValueError:
        return False
    return True


def tiny() -> dllm.HostedModel:
    return dllm.load("tiny")


SCHEDULERS = [one for one in dllm.schedulers.registry.names() if goes(scheduler=one)]
CACHES = [one for one in dllm.cache.registry.names() if goes(scheduler="threshold", cache=one)]


def test_most_schedulers_and_caches_go_with_it() -> None:
    assert len(SCHEDULERS) > 15
    assert len(CACHES) > 6


@pytest.mark.parametrize(("scheduler", "cache"), crossed(SCHEDULERS, CACHES))
def test_answers_are_in_the_language(scheduler: str, cache: str) -> None:
    for name in GRAMMARS:
        options = {**SLOTS, "scheduler": scheduler, "cache": cache}
        found = dllm.generate(tiny(), PROMPTS, constraint=asked(name), **options)
        assert found.texts is not None
        for text, row in zip(found.texts, found.metrics.rows, strict=True):
            check_text(name, text)
            assert row.finish_reason in ("eos", "length")


@pytest.mark.parametrize("seed", some(range(12), every=6))
def test_ends_may_be_forbidden_and_rows_of_any_length(seed: int) -> None:
    for name, count in (("brackets", 2 * seed + 2), ("sums", seed + 1), ("values", seed + 2)):
        options = {**SLOTS, "max_new_tokens": count, "seed": seed, "forbid_eos": True}
        found = dllm.generate(tiny(), PROMPTS[0], constraint=asked(name), **options)
        assert found.texts is not None
        check_text(name, found.texts[0])
        assert found.metrics.rows[0].valid_tokens == count


@pytest.mark.parametrize("at_eos", ["ignore", "stop", "skip", "block"])
def test_ends_act_as_they_are_told(at_eos: str) -> None:
    options = {**SLOTS, "at_eos": at_eos}
    found = dllm.generate(tiny(), PROMPTS, constraint=asked("sums"), **options)
    assert found.texts is not None
    for text in found.texts:
        check_text("sums", text)


def test_rows_do_not_depend_on_others() -> None:
    constraints = [asked("brackets"), Regex("[0-9]{1,4}"), asked("values"), None, asked("sums")]
    prompts = [*PROMPTS, *PROMPTS[:2]]
    alone = [
        dllm.generate(tiny(), prompt, constraint=one, **{**SLOTS, "seed": 5 + row})
        for row, (prompt, one) in enumerate(zip(prompts, constraints, strict=True))
    ]
    for batch in (None, 2):
        found = dllm.generate(tiny(), prompts, constraint=constraints, batch_size=batch, **SLOTS)
        assert found.sequences == tuple(one.sequences[0] for one in alone)
        assert found.metrics.rows == tuple(one.metrics.rows[0] for one in alone)
        if batch is None:
            assert sum(row.asked.get("rejected", 0) for row in found.metrics.rows) > 20
            assert [bool(row.asked) for row in found.metrics.rows][1::2] == [False, False]


@pytest.mark.parametrize("block_length", [4, 20])
def test_what_is_given_stays(block_length: int) -> None:
    options = {**SLOTS, "fixed": {2: "+", 9: "+", 13: ")"}, "block_length": block_length}
    found = dllm.generate(tiny(), PROMPTS, constraint=asked("sums"), **options)
    assert found.texts is not None
    for text in found.texts:
        check_text("sums", text)
        assert text.count("+") >= 2


@pytest.mark.parametrize("seed", some(range(40), every=20))
def test_nothing_that_goes_together_leaves_the_language(seed: int) -> None:
    source = random.Random(seed)
    names = [source.choice(list(GRAMMARS)) for _ in PROMPTS]
    options: dict[str, Any] = {
        "scheduler": source.choice(SCHEDULERS),
        "cache": source.choice(CACHES),
        "max_new_tokens": source.choice([12, 16, 24]),
        "block_length": source.choice([None, 4, 8, 16]),
        "temperature": source.choice([0.0, 1.0, 3.0]),
        "seed": seed,
        "batch_size": source.choice([None, 2]),
        "forbid_eos": source.random() < 0.2,
    }
    if options["scheduler"] == "learn2pd":  # whose filter was trained on blocks of 16 at most
        options["block_length"] = min(options["block_length"] or 16, 16)
        options["max_new_tokens"] = 16
    found = dllm.generate(tiny(), PROMPTS, constraint=[asked(one) for one in names], **options)
    assert found.texts is not None
    for name, text in zip(names, found.texts, strict=True):
        check_text(name, text)


def test_a_span_is_filled_to_its_last_slot() -> None:
    span = ConstraintSpan(asked("sums"), 3, 9)
    options = {**SLOTS, "at_eos": "ignore", "forbid_eos": True}
    found = dllm.generate(tiny(), PROMPTS[0], constraint=span, **options)
    answer = found.sequences[0][-SLOTS["max_new_tokens"] :]
    tokenizer: Any = tiny().tokenizer
    check_text("sums", tokenizer.decode(answer[3:9]))


@pytest.mark.parametrize(
    "options", [{}, {"forbid_eos": True}, {"at_eos": "ignore"}, {"cache": "dual"}]
)
@pytest.mark.parametrize("name", GRAMMARS)
def test_a_prefix_engine_proposes_what_may_come_next(name: str, options: dict[str, Any]) -> None:
    prefix = Grammar(GRAMMARS[name], method="prefix")
    options = {**SLOTS, "block_length": 1, **options}
    found = dllm.generate(tiny(), PROMPTS, constraint=prefix, batch_size=2, **options)
    other = dllm.generate(tiny(), PROMPTS, constraint=asked(name), **options)
    assert found.texts is not None
    for text in found.texts:
        check_text(name, text)
    counts = [
        sum(row.asked.get("rejected", 0) for row in one.metrics.rows) for one in (found, other)
    ]
    assert counts[0] <= 2 * len(PROMPTS)  # where the slots end
    assert counts[1] > 2 * len(PROMPTS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"block_length": 8}, "block_length=8 lets other slots come first: give block_length=1"),
        ({"block_length": None}, "block_length=None lets other slots come first"),
        ({"scheduler": "multi_block"}, "scheduler 'multi_block' looks beyond a block of one slot"),
    ],
)
def test_a_prefix_engine_goes_from_left_to_right(options: dict[str, Any], reason: str) -> None:
    prefix = Grammar(GRAMMARS["sums"], method="prefix")
    with pytest.raises(ValueError, match=reason):
        dllm.generate(tiny(), PROMPTS, constraint=prefix, **{**SLOTS, "block_length": 1, **options})


PREFIX = {"constraint": Grammar(GRAMMARS["values"], method="prefix"), "block_length": 1}


@pytest.mark.parametrize("scheduler", [one for one in SCHEDULERS if goes(scheduler=one, **PREFIX)])
def test_schedulers_of_the_block_go_with_a_prefix_engine(scheduler: str) -> None:
    found = dllm.generate(tiny(), PROMPTS, **{**SLOTS, **PREFIX, "scheduler": scheduler})
    assert found.texts is not None
    for text in found.texts:
        check_text("values", text)


def test_a_prefix_engine_begins_at_the_rule_start() -> None:
    prefix = Grammar('one: "1"', start="one", method="prefix")
    with pytest.raises(ValueError, match=r"prompt 0: .*begins with the rule start, not 'one'"):
        dllm.generate(tiny(), PROMPTS[0], constraint=prefix, **{**SLOTS, "block_length": 1})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scheduler": "wino"}, "scheduler 'wino': it masks or edits"),
        ({"verifier": "freedave"}, "a verifier"),
        ({"joint": "map", "temperature": 0.0}, "joint='map'"),
        ({"at_eos": "truncate"}, "at_eos='truncate'"),
        ({"max_new_tokens": 1}, "takes 2 bytes at least, and there are 1 slots"),
        ({"max_new_tokens": 3, "forbid_eos": True}, "has no text of exactly 3 bytes"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], reason: str) -> None:
    pairs = Grammar('start: "(" start ")" | "()"', method="emptiness")
    with pytest.raises(ValueError, match=reason.replace("(", "\\(")):
        dllm.generate(tiny(), PROMPTS[0], constraint=pairs, **{**SLOTS, **options})


# One row by itself, over the tokens a, b and ab, an end and padding.

ROWS = Rows(("a", "b", "ab"))
A, B, AB, END = 0, 1, 2, ROWS.end


def turn_of(text: str, tokens: list[int], proposals: list[Proposal], **options: Any) -> Turn:
    language = ROWS.row(Grammar(text, method="emptiness"))
    options = {"ranked": lambda column: [A, B, AB, END], "written": {}, **options}
    return Turn(language, tokens, proposals, **{"block": (0, len(tokens)), **options})


def test_the_surest_is_asked_first_and_the_next_is_barred() -> None:
    proposals = [Proposal(1, B, 0.9), Proposal(0, B, 0.5)]
    found = take(turn_of('start: "ab" | "ba"', [-1, -1], proposals))
    assert found == Outcome([-1, B], {0: {B}}, rejected=1)


def test_a_step_writes_something_where_all_is_refused() -> None:
    found = take(turn_of('start: "ba"', [-1, -1], [Proposal(0, A, 0.9)]))
    assert found == Outcome([B, -1], {0: {A}}, rejected=1)


def test_the_least_sure_gives_way_where_nothing_is_accepted() -> None:
    """Of b?b the grammar has texts of four letters alone, and no token has two of them."""
    written = {0: 0.4, 2: 0.8}
    turn = turn_of('start: "bb" "bb" | "aab"', [B, -1, B], [Proposal(1, A, 0.9)], written=written)
    found = take(turn)
    assert found.tokens == [A, A, B]
    assert found.rewritten == 2
    assert found.barred == {}


def test_a_block_is_left_only_if_the_slots_behind_it_suffice() -> None:
    turn = turn_of('start: "a" start "b" | "ab"', [A, -1, -1], [Proposal(1, A, 0.9)], block=(0, 2))
    found = take(turn)
    assert found.tokens == [A, B, -1]
    assert (found.rejected, found.rewritten) == (0, 1)


def test_a_row_without_any_filling_says_so() -> None:
    turn = turn_of('start: "bbbb"', [B, -1, B], [Proposal(1, A, 0.9)])
    with pytest.raises(UnfillableRowError, match="when its block began"):
        take(turn)


def test_what_was_committed_stays_where_a_row_finds_no_way(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [3]

    def failing(turn: Turn) -> Outcome:
        left[0] -= 1
        if not left[0]:
            raise UnfillableRowError("no text was found")
        return take(turn)

    monkeypatch.setattr("dllm.decoding.languages.row_by_row.take", failing)
    held = Grammar('start: start "+" start | /[0-9]+/', method="emptiness")
    asked: dict[str, Any] = {"scheduler": "fixed_quota", "max_new_tokens": 12, "constraint": held}
    with pytest.raises(UnfillableRowError) as caught:
        dllm.generate(tiny, "12 + 5", **asked)
    assert caught.value.partial is not None
    assert caught.value.partial.metrics.rows[0].forwards == 2
