"""The record of a row: it tells what the loop did, whatever the method, and survives a file."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dllm
from dllm.state.canvas import NEVER
from dllm.trace import Frame, TraceRecord, record_of
from dllm.trace.page import block_at, count, story, texts
from dllm.trace.text import joined, pieces_of, special_of, visible
from tests.support.models import golden_model, random_prompts
from tests.support.traces import BY_HAND, GAPS, METHODS, OPTIONS, QUESTIONS

MASK = 126  # of the golden models


def records(out: dllm.GenerationOutput, tokenizer: Any = None) -> list[TraceRecord]:
    return [record_of(out, row, tokenizer) for row in range(len(out.sequences))]


def again(record: TraceRecord) -> TraceRecord:
    return TraceRecord.from_json(json.loads(json.dumps(record.to_json())))


@pytest.mark.few(3)
@pytest.mark.parametrize("prompts", [QUESTIONS, GAPS], ids=["mixed lengths", "gaps"])
@pytest.mark.parametrize("scheduler", METHODS)
def test_frames_are_the_canvas_of_each_step(
    scheduler: str, prompts: list[Any], tiny: dllm.HostedModel
) -> None:
    running = dllm.stream(tiny, prompts, scheduler=scheduler, at_eos="ignore", **OPTIONS)
    canvas, lengths = running.canvas, running.canvas.layout.lengths
    seen: list[dict[int, list[int]]] = [{} for _ in lengths]
    for _ in chain([None], running):  # the first before the first step
        for row, length in enumerate(lengths):
            seen[row][int(canvas.step[row])] = canvas.tokens[row, :length].tolist()
    out = running.output
    for row, record in enumerate(records(out, tiny.tokenizer)):
        frames = list(record.frames())
        assert len(frames) == record.num_steps + 1 == out.metrics.rows[row].forwards + 1
        told = {step: list(frame.tokens) for step, frame in enumerate(frames)}
        first = told.pop(0)
        last = told.pop(record.num_steps)
        assert last == seen[row].pop(record.num_steps)
        mask = tiny.spec.mask_token_id
        assert [t == mask for t in first[record.prompt_length :]].count(False) == len(record.given)
        kept = len(out.sequences[row])  # what a method cut off is told of in the last frame
        assert {step: told[step][:kept] for step in told} == {
            step: seen[row][step][:kept] for step in told
        }
        replayed = [canvas[: len(record.tokens)] for canvas in out.trace.replay(row)]
        assert replayed == [list(frame.tokens) for frame in frames][: len(replayed)]
        assert again(record) == record


@pytest.mark.few(5)
@pytest.mark.parametrize("scheduler", METHODS)
def test_what_changed_is_named(scheduler: str, tiny: dllm.HostedModel) -> None:
    out = dllm.generate(tiny, QUESTIONS, scheduler=scheduler, **OPTIONS)
    kinds = set()
    for record in records(out, tiny.tokenizer):
        mask, frames = record.mask_token_id, list(record.frames())
        for step, (before, after) in enumerate(pairwise(frames)):
            pairs = enumerate(zip(before.tokens, after.tokens, strict=True))
            different = {column: pair for column, pair in pairs if pair[0] != pair[1]}
            assert set(after.changed) == set(different)
            for column, (old, new) in different.items():
                kind = after.changed[column]
                kinds.add(kind)
                assert (kind == "remask") == (new == mask)
                assert kind != "edit" or mask not in (old, new)
                assert after.written[column] == (NEVER if kind == "fill" else step)
        last = frames[-1]
        for column, step in enumerate(record.commit_step, start=record.prompt_length):
            assert last.written[column] == step
            assert (step == NEVER) == (record.confidence[column - record.prompt_length] is None)
    assert "fill" in kinds
    revises = {
        "wino": "remask",
        "remdm": "remask",
        "token_editing": "edit",
        "insert_delete": "edit",
    }
    name, _, given = scheduler.partition(":")
    if name in revises and (given or name != "token_editing"):  # which edits nothing by default
        assert revises[name] in kinds


def test_a_row_is_recorded_as_if_alone(tiny: dllm.HostedModel) -> None:
    for scheduler in ("threshold", "rcr", "ete"):
        options = {**OPTIONS, "scheduler": scheduler}
        together = records(dllm.generate(tiny, QUESTIONS, **options), tiny.tokenizer)
        for question, record in zip(QUESTIONS, together, strict=True):
            (alone,) = records(dllm.generate(tiny, question, **options), tiny.tokenizer)
            near = [pytest.approx(value, abs=2e-4) for value in record.confidence]
            assert replace(alone, confidence=()) == replace(record, confidence=())
            assert list(alone.confidence) == near


def test_a_verifier_tells_the_same_story_in_fewer_forwards(tiny: dllm.HostedModel) -> None:
    plain = records(dllm.generate(tiny, QUESTIONS, scheduler="fixed_quota", **OPTIONS))
    options = {**OPTIONS, "scheduler": "fixed_quota", "verifier": "ssd:draft_length=4"}
    fast = records(dllm.generate(tiny, QUESTIONS, **options))
    for one, other in zip(plain, fast, strict=True):
        assert other.forwards < one.forwards == one.num_steps == other.num_steps
        assert [f.tokens for f in one.frames()] == [f.tokens for f in other.frames()]
        assert f"{other.num_steps} steps in {other.forwards} forwards" in story(other)


def test_what_was_not_decoded_stays_open_until_the_end(tiny: dllm.HostedModel) -> None:
    out = dllm.generate(tiny, QUESTIONS[0], scheduler="threshold", max_new_tokens=64)
    (record,) = records(out, tiny.tokenizer)
    *_, before, last = record.frames()
    filled = [column for column, kind in last.changed.items() if kind == "fill"]
    assert record.finish_reason == "eos"
    assert len(filled) > 20
    assert {before.tokens[column] for column in filled} == {record.mask_token_id}
    assert len(filled) + sum(step != NEVER for step in record.commit_step) == 64


def test_columns_that_a_method_cut_off_are_told_of(tiny: dllm.HostedModel) -> None:
    out = dllm.generate(
        tiny, QUESTIONS[:2], scheduler="end_of_text", max_new_tokens=128, block_length=16
    )
    cut = [len(sequence) for sequence in out.sequences]
    for record, length in zip(records(out), cut, strict=True):
        assert len(record.tokens) == record.prompt_length + 128
        assert length <= len(record.tokens)
        assert not record.given
    assert min(cut) < min(len(record.tokens) for record in records(out))


def test_blocks_are_those_that_a_row_entered() -> None:
    model = golden_model("llada_gqa")
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}
    out = dllm.generate(model, random_prompts(3), scheduler="fixed_quota", steps=12, **options)
    for record in records(out):
        start = record.prompt_length
        assert record.blocks == ((start, 0), (start + 8, 4), (start + 16, 8))
        for step, column, _ in record.writes:
            assert block_at(record, step) <= column < block_at(record, step) + 8
    aligned = dllm.generate(model, [[1] * 5], blocks_from="zero", **options)
    assert [column for column, _ in records(aligned)[0].blocks] == [0, 8, 16, 24]


def test_an_interrupted_row_keeps_its_masks() -> None:
    running = dllm.stream(golden_model("llada_gqa"), [[1, 2, 3]], **OPTIONS, at_eos="ignore")
    for _ in range(5):
        next(iter(running))
    (record,) = records(running.output)
    assert record.num_steps == 5
    assert record.finish_reason == "interrupted"
    *_, last = record.frames()
    assert last.tokens.count(MASK) > 0
    assert "fill" not in last.changed.values()
    assert count(record, last, 5).startswith("step 5 of 5 · 1 committed · 5 of 32 slots committed")


def test_a_run_that_never_began_has_one_frame() -> None:
    running = dllm.stream(golden_model("llada_gqa"), [[1, 2, 3]], **OPTIONS)
    (record,) = records(running.output)
    (frame,) = record.frames()
    assert frame.tokens == (1, 2, 3, *[MASK] * 32)
    assert again(record) == record


def test_a_revised_row_by_hand() -> None:
    assert list(BY_HAND.frames()) == [
        Frame((9, 0, 3, 0), (-1, -1, -1, -1), {}),
        Frame((9, 5, 3, 0), (-1, 0, -1, -1), {1: "commit"}),
        Frame((9, 0, 3, 0), (-1, 1, -1, -1), {1: "remask"}),
        Frame((9, 6, 3, 0), (-1, 2, -1, -1), {1: "commit"}),
        Frame((9, 7, 3, 1), (-1, 3, -1, -1), {1: "edit", 3: "fill"}),
    ]
    assert [texts(BY_HAND, frame) for frame in BY_HAND.frames()] == [
        ["p", "·", "c", "·"],
        ["p", "e", "c", "·"],
        ["p", "\u00d7", "c", "·"],
        ["p", "f↵\n", "c", "·"],
        ["p", "g⇥h", "c", "<eos>"],
    ]
    told = [count(BY_HAND, frame, step) for step, frame in enumerate(BY_HAND.frames())]
    assert told[0] == "step 0 of 4 · 0 of 2 slots committed"
    assert told[2] == "step 2 of 4 · 0 committed · 1 masked again · 0 of 2 slots committed"
    assert told[4].endswith("1 edited · 1 filled after the end · 1 of 2 slots committed")
    assert (
        story(BY_HAND)
        == "by hand · 4 steps in 4 forwards · 6 with variants or drafts · ended by: eos"
    )


def test_what_an_end_token_overwrote_is_no_commit() -> None:
    written = ((0, 1, 5), (1, 3, 6))
    cut = replace(BY_HAND, changes=written, tokens=(9, 5, 3, 1), num_steps=2)
    *_, last = cut.frames()
    assert last == Frame((9, 5, 3, 1), (-1, 0, -1, -1), {3: "fill"})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dllm_trace": 99}, "dllm_trace=99"),
        ({"colour": 1}, r"unknown \['colour'\]"),
        ({"tokens": None}, "values are wrong"),
        ({"tokens": [9, 7, "3", 1]}, "'3' must be a whole number"),
        ({"tokens": [9, 7, 3, True]}, "True must be"),
        ({"tokens": [9, 7, 3, 8]}, "pieces"),
        ({"tokens": [9, 7, 3]}, "commit_step, confidence"),
        ({"prompt_length": 5}, "prompt_length"),
        ({"given": [4]}, "a column"),
        ({"blocks": [[-1, 0]]}, "a column"),
        ({"joined": [[3, 9, "x"]]}, "a column"),
        ({"num_steps": 3}, "a step"),
        ({"num_steps": 10**12}, "num_steps"),
        ({"changes": [[-1, 1, 5]]}, "a step of changes"),
        ({"changes": [[1, 1]]}, "values are wrong"),
        ({"pieces": ["a"]}, "values are wrong"),
        ({"confidence": [float("nan"), None, None]}, "confidence"),
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TraceRecord.from_json({**again(BY_HAND).to_json(), **changed})


@pytest.mark.parametrize("other", [None, [], 3, "text", {}, {"tokens": []}])
def test_something_else_is_no_record(other: Any) -> None:
    with pytest.raises(ValueError, match="no trace"):
        TraceRecord.from_json(other)


def test_a_missing_key_is_named() -> None:
    damaged = BY_HAND.to_json()
    del damaged["blocks"]
    with pytest.raises(ValueError, match=r"missing \['blocks'\]"):
        TraceRecord.from_json(damaged)


@given(st.text())
def test_visible_text_acts_on_nothing(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert not set(shown) & {*map(chr, range(9)), "\x1b", "\x7f", "\u202e", "\u2066", "\u2028"}
    shown.encode()  # no lone surrogate is left
    if text.isascii() and text.isprintable():
        assert shown == text


def test_visible_text_by_hand() -> None:
    assert visible("a\x00\x1b[2J\x7f\u202eb\ud800") == "a␀␛[2J␡⟨U+202E⟩b⟨U+D800⟩"
    assert visible("\n\té👩\u200d🚀שלום") == "\n\té👩\u200d🚀שלום"


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, in the spelling of GPT-2, LLaDA and Qwen, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({**{c: n for n, c in enumerate(alphabet)}, "<eos>": 256}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_tokens_that_are_parts_of_a_character() -> None:
    tokenizer = bytes_tokenizer()
    ids = tokenizer.encode("a é€🚀")
    assert len(ids) == 2 + 2 + 3 + 4
    pieces = pieces_of(tokenizer, [*ids, 256, 999])
    assert [pieces[token] for token in ids[:4]] == ["a", " ", "\\xc3", "\\xa9"]
    assert pieces[256] == "<eos>"
    assert joined(tokenizer, ids) == ((2, 4, "é"), (4, 7, "€"), (7, 11, "🚀"))
    assert joined(tokenizer, ids[:-1]) == ((2, 4, "é"), (4, 7, "€"))
    assert joined(tokenizer, ids[3:]) == ((1, 4, "€"), (4, 8, "🚀"))
    assert special_of(tokenizer, [*ids, 256]) == {256}
    tokens = tuple(ids[2:4])
    record = replace(
        *(BY_HAND,),
        prompt_length=0,
        tokens=tokens,
        given=(),
        commit_step=(0, 1),
        confidence=(1.0, 1.0),
        pieces={**pieces, 0: "<mask>"},
        joined=joined(tokenizer, tokens),
        changes=None,
        num_steps=2,
    )
    record = replace(record, mask_token_id=256)
    assert [texts(record, frame) for frame in record.frames()] == [
        ["·", "·"],
        ["\\xc3", "·"],
        ["é", ""],
    ]


def test_words_of_sentencepiece_keep_their_space() -> None:
    model = models.WordLevel({"\u2581a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert pieces_of(wrapped, [0, 1, 2]) == {0: " a", 1: "b", 2: "<unk>"}


def test_without_a_tokenizer_ids_are_shown() -> None:
    assert pieces_of(None, [7, 3]) == {3: "⟨3⟩", 7: "⟨7⟩"}
    assert joined(None, [7, 3]) == ()
    assert special_of(None, [7, 3]) == set()
