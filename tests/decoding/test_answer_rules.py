"""What a call says of its answers: how many, how long, where they end, which tokens they avoid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import dllm
from dllm.eval.run.run import Run
from dllm.eval.tasks.task import Task
from dllm.settings import Settings
from dllm.state.processing import Processing, Rows
from tests.support.laws import transfers_of
from tests.support.models import MODELS, golden_model, random_prompts

QUESTION = "tom has 53 pens. tom loses 3. how many pens does tom have?"
OTHER = "lily has 20 cups. lily finds 12. how many cups does lily have?"
ANSWER = "53-3=50; #### 50"
METHODS: list[dict[str, Any]] = [
    {},
    {"cache": "dual"},
    {"cache": "prefix", "scheduler": "fixed_quota"},
    {"verifier": "freedave:4"},
    {"verifier": "ssd:draft_length=4", "scheduler": "fixed_quota"},
    {"batch_size": 1},
    {"scheduler": "fixed_quota:order=random", "seed": 3},
    {"scheduler": "lopa"},
    {"scheduler": "wino"},
    {"scheduler": "prophet"},
]


@pytest.fixture(scope="module")
def tiny() -> dllm.HostedModel:
    return dllm.load("tiny")


def rows_of(out: dllm.GenerationOutput) -> list[tuple[str, int]]:
    return [(row.finish_reason, row.valid_tokens) for row in out.metrics.rows]


@pytest.mark.few(8)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("stop", ["#### 5", ["zzz", "; ####", "50;"], "=", "5"], ids=str)
def test_a_stop_string_ends_the_answer(
    tiny: dllm.HostedModel, method: dict[str, Any], stop: Any
) -> None:
    plain = dllm.generate(tiny, [QUESTION, OTHER], **method)
    out = dllm.generate(tiny, [QUESTION, OTHER], stop=stop, **method)
    strings = [stop] if isinstance(stop, str) else stop
    assert plain.texts is not None
    assert out.texts is not None
    for text, whole, row, of_whole in zip(
        out.texts, plain.texts, out.metrics.rows, plain.metrics.rows, strict=True
    ):
        found = [whole.index(string) for string in strings if string in whole]
        assert text == whole[: min(found, default=None)]
        assert row.finish_reason == ("stop" if found else "eos")
        assert (row.valid_tokens < of_whole.valid_tokens) == bool(found)
        assert row.forwards <= of_whole.forwards


def test_nothing_is_left_behind_a_stop_string(tiny: dllm.HostedModel) -> None:
    asked: dict[str, Any] = {"scheduler": "fixed_quota", "block_length": 64, "at_eos": "ignore"}
    whole = dllm.generate(tiny, QUESTION, **asked)
    running = dllm.stream(tiny, QUESTION, stop="=", **asked)
    events = list(running)
    out = running.output
    (row,) = out.metrics.rows
    assert out.texts == ("53-3",)
    assert row.finish_reason == "stop"
    assert row.raw_tokens == row.valid_tokens == 5
    assert row.forwards < whole.metrics.rows[0].forwards
    assert events[-1].finished == (0,)
    assert "=" in running.text()
    assert "50" not in running.text()


def test_a_stop_string_over_several_tokens_and_one_within_a_token(tiny: dllm.HostedModel) -> None:
    assert dllm.generate(tiny, QUESTION, stop="=50; #### 5").texts == ("53-3",)
    # The token that completes it is counted, what it holds beyond is no part of the text.
    out = dllm.generate(tiny, QUESTION, stop="###")
    assert out.texts == ("53-3=50; ",)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "dkv"])
def test_a_stopped_row_leaves_the_others_as_they_are(tiny: dllm.HostedModel, cache: str) -> None:
    stop = "53-3="
    together = dllm.generate(tiny, [QUESTION, OTHER], stop=stop, cache=cache)
    alone = [dllm.generate(tiny, one, stop=stop, cache=cache) for one in (QUESTION, OTHER)]
    assert together.sequences == tuple(out.sequences[0] for out in alone)
    assert together.metrics.rows == tuple(out.metrics.rows[0] for out in alone)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop": ["a", ""]}, "empty text"),
        ({"stop": 3}, "stop=3 must be a list of texts"),
        ({"stop": "a", "infill": True}, "infill"),
        ({"min_new_tokens": 65}, "max_new_tokens=64"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1 must be at least 0"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 must be positive"),
        ({"logits_processors": 3}, "logits_processors=3"),
        ({"n": 2, "seed": [1]}, "1 seeds were given for 2"),
        (
            {"logits_processors": [transformers.NoRepeatNGramLogitsProcessor(2)]},
            "reads the end of a text",
        ),
        (
            {"logits_processors": lambda tokens, scores: scores[:1]},
            "must return scores of the shape it was given",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_done_is_refused(
    tiny: dllm.HostedModel, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="n=|" + message.replace("(", ".")) as error:
        dllm.generate(tiny, QUESTION, **given)
    assert message in str(error.value)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="needs a tokenizer"):
        dllm.generate(golden_model("llada_mha"), [[5, 7]], stop="x")


@pytest.mark.parametrize("batch_size", [None, 2])
def test_several_answers_are_those_of_the_prompt_given_so_often(
    tiny: dllm.HostedModel, batch_size: int | None
) -> None:
    asked: dict[str, Any] = {"temperature": 3.0, "seed": 5, "max_new_tokens": 16}
    out = dllm.generate(tiny, [QUESTION, OTHER], n=3, batch_size=batch_size, **asked)
    often = dllm.generate(tiny, [QUESTION] * 3 + [OTHER] * 3, **asked)
    assert out.sequences == often.sequences
    assert len(set(out.sequences)) > 2
    same = dllm.generate(tiny, [QUESTION, OTHER], num_return_sequences=3, **asked)
    assert same.sequences == out.sequences


@pytest.mark.few(1)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_no_end_token_among_the_first_ones(tiny: dllm.HostedModel, method: dict[str, Any]) -> None:
    for least in (13, 40, 64):
        out = dllm.generate(tiny, [QUESTION, OTHER], min_new_tokens=least, **method)
        assert min(row.valid_tokens for row in out.metrics.rows) >= least
    assert rows_of(out) == [("length", 64)] * 2


def test_a_least_length_is_counted_from_each_prompts_end() -> None:
    model = golden_model("llada_gqa")
    ends = list(range(40, 125))  # so that one is proposed in nearly every column
    asked: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "eos_token_id": ends}
    prompts = random_prompts(4)
    for batch_size in (None, 1, 3):
        out = dllm.generate(model, prompts, min_new_tokens=7, batch_size=batch_size, **asked)
        for prompt, sequence in zip(prompts, out.sequences, strict=True):
            assert not set(sequence[len(prompt) : len(prompt) + 7]) & set(ends)
        assert all(row.valid_tokens >= 7 for row in out.metrics.rows)
        assert any(row.valid_tokens == 7 for row in out.metrics.rows)


def test_a_penalty_is_that_of_transformers() -> None:
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    tokens = torch.tensor([[3, 4, 99, 5, 6, 99, 99], [7, 7, 8, 99, 9, 9, 9]])
    rows = Rows(tokens, torch.tensor([2, 3]), torch.tensor([7, 4]), torch.arange(2))
    logits = torch.randn(2, 3, 100, generator=torch.manual_seed(0))
    own = Processing(99, (9,), repetition_penalty=1.7)(logits, torch.tensor([[2, 5, 6]] * 2), rows)
    seen = [tokens[0][tokens[0] != 99][None], tokens[1, :3][None]]  # no masks and no padding
    for row, ids in enumerate(seen):
        for place in range(3):
            assert torch.equal(own[row, place], penalty(ids, logits[row, place][None].clone())[0])


@pytest.mark.few(1)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "rules",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.6, "min_new_tokens": 9},
        {"logits_processors": transformers.RepetitionPenaltyLogitsProcessor(1.5)},
    ],
    ids=" ".join,
)
def test_rules_hold_in_every_batch_and_with_a_verifier(model: str, rules: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "scheduler": "threshold:0.2"}
    hosted, prompts = golden_model(model), random_prompts(3)
    out = dllm.generate(hosted, prompts, **asked, **rules)
    plain = dllm.generate(hosted, prompts, **asked)
    assert out.sequences != plain.sequences, "the rules change nothing here"
    alone = [dllm.generate(hosted, [prompt], **asked, **rules).sequences[0] for prompt in prompts]
    assert list(out.sequences) == alone
    for verifier in ("freedave:3", "ssd:draft_length=3", "freedave:3,execution=tree"):
        verified = dllm.generate(hosted, prompts, verifier=verifier, **asked, **rules)
        assert verified.sequences == out.sequences
    others = ("lopa", "ete") if hosted.spec.logit_shift else ("lopa", "ete", "wino")
    for scheduler in others:
        given = {**asked, "scheduler": scheduler, **rules}
        out = dllm.generate(hosted, prompts, **given)
        assert dllm.generate(hosted, prompts[1:2], **given).sequences[0] == out.sequences[1]


def test_a_processor_sees_each_column_with_its_row() -> None:
    model, shapes = golden_model("llada_gqa"), []

    def only(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert tokens.shape[0] == scores.shape[0]
        shapes.append((tokens[0].tolist(), scores.shape[-1]))
        scores[:] = -torch.inf  # in place: what the model returned stays as it is
        scores[:, 17] = 0
        return scores

    out = dllm.generate(
        model, [[5, 6, 7]], max_new_tokens=4, block_length=4, scheduler="fixed_quota",
        logits_processors=[only], eos_token_id=1,
    )  # fmt: skip
    assert out.sequences == ((5, 6, 7, 17, 17, 17, 17),)
    mask = model.spec.mask_token_id
    assert [tokens[3:7].count(17) for tokens, _ in shapes] == [0, 1, 2, 3]
    assert all(set(tokens) <= {5, 6, 7, 17, mask} for tokens, _ in shapes)
    again = dllm.generate(model, [[5, 6, 7]], max_new_tokens=4, logits_processor=only)
    assert again.sequences[0][3:] == (17,) * 4


def test_an_evaluation_answers_a_problem_once(tiny: dllm.HostedModel) -> None:
    run = Run(tiny, Task("none", "", lambda *_: iter(()), lambda *_: False), Settings(n=2))
    with pytest.raises(ValueError, match="a problem is answered once"):
        next(run.results([], None))


def test_rules_wait_for_the_device_no_oftener_and_stop_strings_once_more(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules: dict[str, Any] = {"repetition_penalty": 1.3, "min_new_tokens": 40, "seed": 0}
    rules["logits_processors"] = transformers.RepetitionPenaltyLogitsProcessor(1.1)
    for given, expected in ((rules, 1), ({"stop": "zzz", "scheduler": "fixed_quota"}, 2)):
        events = iter(dllm.stream(tiny, [QUESTION, OTHER], **given))
        next(events)  # tables are built once
        with monkeypatch.context() as patched:
            waits = transfers_of(events, patched)
        assert len(waits) > 3
        assert set(waits) == {expected}
