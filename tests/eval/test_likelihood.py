"""Scores of continuations: exact where they can be, unbiased where they are sampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dllm
from dllm.eval.lm_eval.likelihood import Continuation, Score, Scorer, draw, predict
from tests.support import GOLDEN
from tests.support.models import BLOCK, MASK, family_model, golden_model, random_prompts

VOCABULARY = 11
TEXT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 8)


def wrapped(logits_of: Callable[[Tensor], Tensor]) -> Any:
    return dllm.wrap(logits_of, mask_token_id=10, eos_token_id=0, vocab_size=VOCABULARY)


def context_free() -> Any:
    """Returns a model that looks only at the column."""
    table = torch.randn(64, VOCABULARY, generator=torch.Generator().manual_seed(0))
    return wrapped(lambda tokens: table[: tokens.shape[1]].expand(*tokens.shape, -1))


def true_score(model: Any, text: tuple[int, ...], start: int) -> float:
    logits = model.module(torch.tensor([text]))[0].double().log_softmax(-1)
    return sum(float(logits[column, text[column]]) for column in range(start, len(text)))


def score(model: Any, given: Continuation, **options: Any) -> Score:
    ((index, found),) = Scorer(model, **options).scores([given])
    assert index == 0
    return found


# Which tokens are masked.


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_all_ways_weigh_as_the_two_draws_do(length: int) -> None:
    draws = draw(length, 2**length - 1, seed=0)
    assert draws.exact
    assert len({tuple(row) for row in draws.masked.tolist()}) == len(draws.masked) == 2**length - 1
    for masked, weight in zip(draws.masked, draws.weight, strict=True):
        size = int(masked.sum())
        chance = 1 / length / math.comb(length, size)
        assert float(weight) == pytest.approx(chance * length / size)


def test_fewer_draws_than_ways_are_sampled() -> None:
    draws = draw(4, 14, seed=0)
    assert not draws.exact
    assert draws.masked.shape == (14, 4)


@pytest.mark.few(2)
@pytest.mark.parametrize(("length", "count"), [(5, 3), (6, 4), (9, 9), (4, 8), (300, 7)])
def test_sampled_sizes_are_spread_and_each_is_uniform(length: int, count: int) -> None:
    sizes = torch.stack([draw(length, count, seed).masked.sum(1) for seed in range(2000)])
    assert sizes.min() >= 1
    assert sizes.max() <= length
    for place in range(count):  # of one draw over many seeds
        mean = float(sizes[:, place].double().mean())
        spread = math.sqrt((length**2 - 1) / 12 / 2000)
        assert mean == pytest.approx((length + 1) / 2, abs=4.5 * spread)
    gaps = sizes[0].sort().values.diff()
    assert gaps.max() <= length // count + 1


def test_sampled_weights_are_unbiased_for_each_token() -> None:
    means = torch.stack(
        [
            (d.masked.double() * d.weight[:, None]).sum(0)
            for d in (draw(9, 8, s) for s in range(3000))
        ]
    )
    error = means.std(0) / math.sqrt(3000)
    assert ((means.mean(0) - 1).abs() < 4.5 * error).all()


def test_the_same_seed_draws_the_same() -> None:
    first, again, other = draw(20, 8, 5), draw(20, 8, 5), draw(20, 8, 6)
    assert torch.equal(first.masked, again.masked)
    assert not torch.equal(first.masked, other.masked)


# The score.


@pytest.mark.few(1)
@pytest.mark.parametrize("start", [0, 4, 10])
def test_a_context_free_model_is_scored_exactly(start: int) -> None:
    model = context_free()
    found = score(model, Continuation(TEXT, start), num_draws=2**11)
    assert found.log_likelihood == pytest.approx(true_score(model, TEXT, start), rel=1e-5)
    assert found.exact
    assert found.num_draws == 2 ** (11 - start) - 1


def test_one_token_takes_one_draw() -> None:
    model = context_free()
    found = score(model, Continuation(TEXT, 10), num_draws=1)
    assert (found.num_draws, found.exact) == (1, True)
    assert found.log_likelihood == pytest.approx(true_score(model, TEXT, 10), rel=1e-5)


def test_sampled_scores_are_unbiased_and_settle_with_more_draws() -> None:
    model, right = context_free(), true_score(context_free(), TEXT, 0)
    spreads = []
    for num_draws in (2, 8, 32):
        given = [Continuation(TEXT, 0, seed) for seed in range(300)]
        scores = Scorer(model, num_draws, batch_size=512).scores(given, greedy=False)
        found = torch.tensor([s.log_likelihood for _, s in scores], dtype=torch.float64)
        assert abs(float(found.mean()) - right) < 4.5 * float(found.std()) / math.sqrt(300)
        spreads.append(float(found.std()))
    assert spreads[0] > 1.5 * spreads[1] > 2.2 * spreads[2] > 0


def test_the_score_is_the_mean_over_all_orders_of_decoding() -> None:
    """The bound is E over orders of the chain rule, which needs no masks drawn at all."""
    model = golden_model("llada_gqa")
    text, start = (7, 40, 11, 3, 90, 5), 3
    mask = model.spec.mask_token_id

    def log_prob(column: int, shown: set[int]) -> float:
        hidden = [
            token if place < start or place in shown else mask for place, token in enumerate(text)
        ]
        logits = model.network(torch.tensor([hidden]))[0, column].log_softmax(-1)
        return float(logits[text[column]])

    total = 0.0
    columns = range(start, len(text))
    for column in columns:
        others = [other for other in columns if other != column]
        for count in range(3):
            of_size = [log_prob(column, set(shown)) for shown in combinations(others, count)]
            total += sum(of_size) / len(of_size) / 3
    found = score(model, Continuation(text, start), num_draws=7)
    assert found.log_likelihood == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("name", ["llada_gqa", "dream_gqa"])
def test_one_masked_token_is_predicted_from_its_place(name: str) -> None:
    model = golden_model(name)
    (text,) = random_prompts(1, seed=3, low=9, high=20)
    for start in (1, len(text) - 1):
        seen = [*text[:start], model.spec.mask_token_id]
        logits = model.network(torch.tensor([seen]))[0, start - model.spec.logit_shift]
        found = score(model, Continuation((*seen[:-1], text[start]), start))
        assert found.log_likelihood == pytest.approx(float(logits.log_softmax(-1)[text[start]]))
        assert found.is_greedy == (int(logits.argmax()) == text[start])


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "name",
    ["llada_gqa", "dream_gqa", "sdar", "fast_dllm_v2", "causal", "wedlm", "nemotron", "e2d2"],
)
def test_scores_do_not_depend_on_the_batch(name: str) -> None:
    model = golden_model(name) if "gqa" in name else family_model(name)
    texts = random_prompts(9, seed=1, low=6, high=30)
    given = [Continuation(tuple(t), max(1, len(t) - 2 - i), i) for i, t in enumerate(texts)]
    alone = [score(model, item, num_draws=20) for item in given]
    for batch_size in (4, 64):
        found = dict(Scorer(model, 20, batch_size).scores(given))
        for index, expected in enumerate(alone):
            assert found[index].log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-9)
            assert replace(found[index], log_likelihood=0) == replace(expected, log_likelihood=0)
    assert {item.exact for item in alone} == {True, False} or name in ("causal", "wedlm")


@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2"])
def test_blocks_are_scored_after_clean_ones(name: str) -> None:
    model = family_model(name)
    text = tuple(random_prompts(1, seed=2, low=21, high=22)[0])
    whole = score(model, Continuation(text, 13), num_draws=255)
    parts = [(16, 13), (21, 16)]
    alone = [score(model, Continuation(text[:end], at), num_draws=255) for end, at in parts]
    assert whole.log_likelihood == pytest.approx(sum(part.log_likelihood for part in alone))
    assert whole.num_draws == 7 + 31
    # One token, with the mask written out: its block and those before it are seen.
    start, shift = 18, model.spec.logit_shift
    seen = torch.tensor([[*text[:start], MASK]])
    blocks = torch.arange(start + 1) // BLOCK
    hidden = model.network.hidden(
        seen, torch.arange(start + 1)[None], (blocks[None] <= blocks[:, None])[None]
    )
    logits = model.network.logits(hidden.detach())[0, start - shift].detach().log_softmax(-1)
    found = score(model, Continuation(text[: start + 1], start))
    assert found.log_likelihood == pytest.approx(float(logits[text[start]]))


@torch.no_grad()
def test_a_block_behind_a_causal_context_is_scored_as_a_whole() -> None:
    """The context sees no block; a block, counted from the context's end, sees itself."""
    model, start = family_model("nemotron"), 9
    text = tuple(random_prompts(1, seed=2, low=start + BLOCK + 1, high=start + BLOCK + 2)[0])
    total = score(model, Continuation(text[:-1], start), num_draws=2**BLOCK - 1).log_likelihood
    seen = torch.tensor([[*text[:-1], MASK]])
    columns = torch.arange(len(text))
    causal = (columns[None] <= columns[:, None])[None]
    last = model.network.logits(model.network.hidden(seen, columns[None], causal))[0, -1]
    expected = total + float(last.log_softmax(-1)[text[-1]])
    found = score(model, Continuation(text, start), num_draws=2**BLOCK - 1)
    assert found.exact
    assert found.log_likelihood == pytest.approx(expected)
    # Its last token alone, the mask written out: the others of its block see it, the context not.
    seen = torch.tensor([[*text[:-2], MASK]])
    columns = torch.arange(seen.shape[1])
    block = start + BLOCK - 1 - 2
    attend = (columns[None] <= columns[:, None]) | (columns >= block)[:, None]
    hidden = model.network.hidden(seen, columns[None], attend[None])
    logits = model.network.logits(hidden)[0, -3:].log_softmax(-1)
    given = Continuation(text[:-1], block)
    mask = torch.tensor([False, False, True])
    prediction = predict(model, [given], [mask])
    torch.testing.assert_close(prediction.logits[0].log_softmax(-1), logits)


def test_blocks_counted_from_the_prompt_begin_with_the_answer() -> None:
    """A prompt of any length is followed by whole blocks, its own first block is the short one."""
    model, start = family_model("bd3lm"), 11
    text = tuple(random_prompts(1, seed=3, low=start + BLOCK + 1, high=start + BLOCK + 2)[0])
    whole = score(model, Continuation(text, start), num_draws=2**BLOCK - 1)
    first = score(model, Continuation(text[:-1], start), num_draws=2**BLOCK - 1)
    columns = torch.arange(len(text))
    block = (columns + -start % BLOCK) // BLOCK
    assert block.tolist().count(0) == start % BLOCK
    seen = torch.tensor([[*text[:-1], MASK]])
    attend = (block[None] <= block[:, None])[None]
    last = model.network.logits(model.network.hidden(seen, columns[None], attend))[0, -1]
    expected = first.log_likelihood + float(last.detach().log_softmax(-1)[text[-1]])
    assert whole.exact
    assert whole.log_likelihood == pytest.approx(expected)


@pytest.mark.parametrize("name", ["e2d2_tied", "e2d2_untied"])
def test_an_encoder_and_a_decoder_are_scored_in_the_one_pass_form(name: str) -> None:
    """Each block's logits are the recorded ones, which the authors' loss is made of."""
    model = dllm.load(GOLDEN / "models" / name, dtype="float64")
    stored = load_file(GOLDEN / "models" / name / "ref_logits.safetensors")
    for number, length in enumerate((29, 32, 32)):  # of the first, the rest is padding
        case = {key[2:]: value for key, value in stored.items() if key.startswith(f"{number}.")}
        context, block = case["meta"].tolist()
        texts, masks, expected = [], [], []
        for end in range(context // block * block + block, length + 1, block):
            start = max(context, end - block)
            texts.append(Continuation(tuple(case["x0"][:end].tolist()), start, context=context))
            masks.append(case["xt"][start:end] == model.spec.mask_token_id)
            expected.append(case["logits_f64"][start:end])
        if model.spec.block_length != block:
            model = replace(model, spec=replace(model.spec, block_length=block))
        seen = predict(model, texts, masks)
        for row, logits in enumerate(expected):
            found = seen.logits[row, : len(logits)]
            torch.testing.assert_close(found, logits, rtol=0, atol=1e-11)


def test_blocks_of_an_encoder_and_a_decoder_add_up() -> None:
    model = family_model("e2d2")
    text = tuple(random_prompts(1, seed=2, low=21, high=22)[0])
    whole = score(model, Continuation(text, 13), num_draws=255)
    parts = [(16, 13), (21, 16)]
    given = [Continuation(text[:end], at, context=13) for end, at in parts]
    alone = [score(model, one, num_draws=255) for one in given]
    assert whole.log_likelihood == pytest.approx(sum(part.log_likelihood for part in alone))
    assert whole.num_draws == 7 + 31
    # The second block sees the first one clean, whatever the context was.
    other = score(model, Continuation(text, 16), num_draws=255)
    assert other.log_likelihood != pytest.approx(alone[1].log_likelihood)


def test_guidance_has_no_meaning_where_masks_stand_behind_all_tokens() -> None:
    with pytest.raises(ValueError, match="'e2d2' never encodes: leave it out"):
        Scorer(family_model("e2d2"), guidance_scale=0.5)
    with pytest.raises(ValueError, match=r"guidance_scale=0.5 runs the prompt as masks"):
        Scorer(family_model("wedlm"), guidance_scale=0.5)


@torch.no_grad()
def test_tokens_of_a_causal_order_are_scored_one_by_one() -> None:
    """Each by a mask after the tokens before it, so that the parts are exact and add up."""
    model, text = family_model("wedlm"), tuple(random_prompts(1, seed=4, low=12, high=13)[0])
    found = score(model, Continuation(text, 8))
    total = 0.0
    for place in range(8, len(text)):
        seen = torch.tensor([[*text[:place], MASK]])
        columns = torch.arange(place + 1)
        causal = (columns[None] <= columns[:, None])[None]
        hidden = model.network.hidden(seen, columns[None], causal)
        total += float(model.network.logits(hidden)[0, place].log_softmax(-1)[text[place]])
    assert found.exact
    assert found.num_draws == len(text) - 8
    assert found.log_likelihood == pytest.approx(total)


def test_guidance_mixes_in_a_pass_without_the_context() -> None:
    model, text = golden_model("llada_gqa"), (7, 40, 11, 3)
    mask, scale = model.spec.mask_token_id, 1.5
    seen, blind = torch.tensor([[*text[:3], mask]]), torch.tensor([[mask] * 4])
    with_context, without = model.network(seen)[0, 3], model.network(blind)[0, 3]
    logits = without + (scale + 1) * (with_context - without)
    found = score(model, Continuation(text, 3), guidance_scale=scale)
    assert found.log_likelihood == pytest.approx(float(logits.log_softmax(-1)[text[3]]))


# Whether the model would write it.


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["llada_gqa", "dream_gqa"])
def test_greedy_is_what_one_token_a_step_decodes(name: str) -> None:
    model = golden_model(name)
    for prompt in random_prompts(2, seed=5, low=4, high=9):
        out = dllm.generate(
            model,
            [prompt],
            scheduler="fixed_quota",
            max_new_tokens=6,
            block_length=6,
            at_eos="ignore",
            statistics_dtype=torch.float64,
        )
        text = out.sequences[0]
        assert score(model, Continuation(text, len(prompt))).is_greedy
        for column in (len(prompt), len(text) - 1):
            changed = (*text[:column], (text[column] + 1) % 120, *text[column + 1 :])
            assert not score(model, Continuation(changed, len(prompt))).is_greedy


def test_every_block_must_be_greedy() -> None:
    """One token of each of two blocks; the later one is greedy after a wrong one as well."""
    model = family_model("sdar")
    start = BLOCK * 2 - 1
    before = tuple(random_prompts(1, seed=4, low=start, high=start + 1)[0])

    def surest(text: tuple[int, ...]) -> int:
        options = [Continuation((*text, token), len(text)) for token in range(MASK)]
        (right,) = (
            i for i, found in Scorer(model, batch_size=64).scores(options) if found.is_greedy
        )
        return right

    right = (*before, surest(before))
    wrong = (*before, (right[-1] + 1) % 100)
    for text, expected in ((right, True), (wrong, False)):
        given = Continuation((*text, surest(text)), start)
        assert score(model, given).is_greedy is expected


def test_greedy_is_false_when_it_is_not_asked() -> None:
    given = Continuation(TEXT, len(TEXT))
    ((_, found),) = Scorer(context_free()).scores([given], greedy=False)
    assert found == Score(0.0, False, 0, True)


# What cannot be scored.


def test_nothing_to_score_is_certain() -> None:
    assert score(context_free(), Continuation(TEXT, len(TEXT))) == Score(0.0, True, 0, True)
    assert list(Scorer(context_free()).scores([])) == []


def test_what_cannot_be_scored_says_why() -> None:
    with pytest.raises(ValueError, match="the first token of a text has no score"):
        score(golden_model("dream_gqa"), Continuation(TEXT, 0))
    broken = wrapped(lambda tokens: torch.full((*tokens.shape, VOCABULARY), torch.nan))
    with pytest.raises(dllm.BrokenLogitsError, match="NaN"):
        score(broken, Continuation(TEXT, 9))

    def full(tokens: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(dllm.NotEnoughMemoryError, match=r"1 row\(s\) of 11 .* lower batch_size"):
        score(wrapped(full), Continuation(TEXT, 8), batch_size=5)
    for options in ({"num_draws": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="=0 must be at least 1"):
            Scorer(context_free(), **options)
