"""Learn2PD: its recorded training data, the rule by hand, its filter files and their training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner, Result

import dllm
from dllm import schedulers
from dllm.cli.main import app, main
from dllm.eval.tasks import TASKS
from dllm.learn2pd import Filter, Origin, read_filter, write_filter
from dllm.schedulers.end_of_text import EndOfText
from dllm.schedulers.fixed_quota import FixedQuota
from dllm.schedulers.learn2pd import Learn2PD
from dllm.settings import Settings
from dllm.state.candidates import Candidates
from dllm.training import learn2pd as training
from dllm.training import learn2pd_examples as data
from dllm.training.learn2pd import Recipe, Training, score, split
from dllm.training.learn2pd_examples import Examples, Oracle, Source, collect, observe
from tests.support import GOLDEN
from tests.support.models import golden_model, random_prompts
from tests.support.views import MASK, layout_of, view_of

END = 9  # the end token of the views by hand
RECORDED = json.loads((GOLDEN / "cases" / "learn2pd_training_data.json").read_text())["cases"]
QUESTIONS = [
    "tom has 53 pens. tom loses 3. how many pens does tom have?",
    "ann has 12 cups. ann buys 7 more. how many cups does ann have?",
    "mia has 73 apples. mia gets 21 more. mia drops 7. how many apples does mia have?",
]
ANSWERS = ["#### 50", "#### 19", "#### 87"]


# The oracle against the recorded runs of the authors' code.


@pytest.mark.few(1)
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_the_training_data_is_the_recorded_one(case: dict[str, Any]) -> None:
    model = golden_model(case["model"], case["dtype"])
    args = case["args"]
    settings = Settings(
        max_new_tokens=args["gen_length"],
        block_length=args["block_length"],
        scheduler=FixedQuota(steps=args["steps"]),
        at_eos="ignore",
        statistics_dtype=torch.float64,
    )
    answered = dllm.generate(model, [case["prompt"]], settings)
    assert list(answered.sequences[0]) == case["reference_answer"]
    assert answered.metrics.num_forwards == case["reference_nfe"]

    oracle = Oracle(torch.tensor(answered.sequences))
    running = dllm.stream(model, [case["prompt"]], settings, scheduler=oracle)
    found = observe(running, oracle.reference)
    assert found.final.int().tolist() == [row["is_correct"] for row in case["rows"]]
    confidence = torch.tensor([row["confidence"] for row in case["rows"]])
    torch.testing.assert_close(found.confidence, confidence, rtol=0, atol=1e-6)
    assert found.real.all()
    assert not found.prompt.any()
    assert list(running.output.sequences[0]) == case["final"]
    assert running.output.metrics.num_forwards == case["nfe"]
    commits = [sorted(step) for step in running.output.trace.commits(0)]
    assert commits == [sorted(map(tuple, step["commits"])) for step in case["trace"]]

    collected = collect(model, [case["prompt"]], settings)
    assert all(torch.equal(value, vars(found)[name]) for name, value in vars(collected).items())


def test_the_oracle_sees_each_row_as_if_it_were_alone() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    settings = Settings(max_new_tokens=16, block_length=8, scheduler="fixed_quota", at_eos="ignore")
    together = collect(model, prompts, settings)
    assert set(together.prompt.tolist()) == {0, 1, 2}
    seats = collect(model, prompts, replace(settings, batch_size=2))  # or what a machine prefers
    assert torch.equal(seats.prompt, together.prompt)
    assert torch.equal(seats.final, together.final)
    for row, prompt in enumerate(prompts):
        alone = collect(model, [prompt], settings)
        mine = together.at(together.prompt == row)
        for name in ("final", "masked", "real"):
            assert torch.equal(vars(mine)[name], vars(alone)[name]), name
        torch.testing.assert_close(mine.confidence, alone.confidence)


def test_rows_that_leave_take_nobody_s_reference(tiny: dllm.HostedModel) -> None:
    """Of more than a few prompts finished rows leave, and the others move to their seats."""
    problems = TASKS["arithmetic"].take(40, "train")
    prompts = [problem.prompt for problem in problems]
    settings = Settings(max_new_tokens=48, block_length=16, scheduler="fixed_quota:steps=12")
    together = collect(tiny, prompts, settings)
    for start in range(0, 40, 8):  # few, which keep their seats
        few = collect(tiny, prompts[start : start + 8], settings)
        for row in range(8):
            mine = together.at(together.prompt == start + row)
            alone = few.at(few.prompt == row)
            for name in ("final", "masked", "real"):
                assert torch.equal(vars(mine)[name], vars(alone)[name]), name
            torch.testing.assert_close(mine.confidence, alone.confidence)


# The rule by hand.


def proposals(tokens: list[list[int]], confidence: list[list[float]]) -> Candidates:
    """Candidates that propose these tokens of ten with these probabilities."""
    token, first = torch.tensor(tokens), torch.tensor(confidence, dtype=torch.float64)
    rest = ((1 - first) / 9)[..., None].expand(-1, -1, 10)
    return Candidates(rest.scatter(-1, token[..., None], first[..., None]).log(), token)


def above(path: Path, width: int, least: float, **origin: Any) -> str:
    """Writes a filter that finds final what is above a confidence; at 0.5, that is."""
    told: Any = {"model": "some", "vocab_size": 128, "mask_token_id": 126, "block_length": width}
    told |= {"model_dtype": "float32", "confidence_dtype": "float32", "figures": {}}
    network = Filter(width, 1, Origin(**{**told, **origin}) if origin else None)
    weights = {"linear1.weight": 50 * torch.eye(width), "linear1.bias": torch.full((width,), -50.0)}
    network.load_state_dict({**weights, "linear1.bias": weights["linear1.bias"] * least})
    write_filter(network, path)
    return str(path)


def test_what_the_filter_accepts_is_committed_and_the_best_of_the_rest(tmp_path: Path) -> None:
    scheduler = Learn2PD(above(tmp_path / "f.safetensors", 4, 0.7), threshold=0.5)
    masked = torch.tensor([[True, True, True, False], [True, True, True, True]])
    candidates = proposals([[1] * 4] * 2, [[0.8, 0.75, 0.6, 0.99], [0.3, 0.5, 0.4, 0.2]])
    commit = scheduler.decide(candidates, view_of(masked)).commit
    assert commit.tolist() == [[True, True, False, False], [False, True, False, False]]
    stricter = replace(scheduler, threshold=0.95)  # needs 0.7 + log(19) / 50, about 0.759
    assert stricter.decide(candidates, view_of(masked)).commit.sum(1).tolist() == [1, 1]
    assert not stricter.accepted(candidates, view_of(masked))[0, 1]


def test_a_probability_at_the_threshold_is_not_enough(tmp_path: Path) -> None:
    network = Filter(2, 1)
    network.load_state_dict({"linear1.weight": torch.zeros(2, 2), "linear1.bias": torch.zeros(2)})
    write_filter(network, tmp_path / "half.safetensors")
    candidates = proposals([[1, 1]], [[0.9, 0.8]])
    view = view_of(torch.ones(1, 2, dtype=torch.bool))
    scheduler = Learn2PD(str(tmp_path / "half.safetensors"), threshold=0.5)
    assert not scheduler.accepted(candidates, view).any()
    assert replace(scheduler, threshold=0.49).accepted(candidates, view).all()


def test_the_filter_reads_committed_columns_and_zeros_beyond_the_row(tmp_path: Path) -> None:
    """A column's logit is 50 times the other columns' confidences, less 46."""
    network = Filter(3, 1)
    weight = 50 * (1 - torch.eye(3))
    network.load_state_dict({"linear1.weight": weight, "linear1.bias": torch.full((3,), -46.0)})
    write_filter(network, tmp_path / "others.safetensors")
    scheduler = Learn2PD(str(tmp_path / "others.safetensors"), threshold=0.5)
    candidates = proposals([[1, 1, 1]], [[0.4, 0.3, 0.6]])
    masked = torch.tensor([[True, True, False]])
    assert scheduler.accepted(candidates, view_of(masked)).tolist() == [[False, True, False]]
    shorter = view_of(masked, length=torch.tensor([2]))
    assert not scheduler.accepted(candidates, shorter).any()


@pytest.mark.parametrize(
    ("steps", "step", "masks", "blocks", "quota"),
    [
        (None, 0, 8, 1, 1),
        (8, 0, 8, 1, 1),
        (3, 0, 8, 1, 3),
        (3, 1, 5, 1, 3),  # what the block began with counts
        (3, 2, 2, 1, 2),
        (12, 0, 8, 4, 3),
        (12, 2, 2, 4, 2),
        (16, 5, 2, 1, 1),  # a quota of 1 for half of the steps, then the best all the same
    ],
)
def test_the_quota(steps: int | None, step: int, masks: int, blocks: int, quota: int) -> None:
    scheduler = Learn2PD(None, steps=steps)
    masked = torch.arange(8)[None] < masks
    view = view_of(masked, step, block_masks=torch.tensor([8]), num_blocks=torch.tensor([blocks]))
    confidence = [0.1, 0.8, 0.3, 0.7, 0.2, 0.6, 0.5, 0.4]
    commit = scheduler.decide(proposals([[1] * 8], [confidence]), view).commit
    best = sorted(range(masks), key=lambda column: -confidence[column])[:quota]
    assert commit[0].nonzero().flatten().tolist() == sorted(best)


def test_without_a_filter_it_is_the_fixed_quota() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    slots: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}
    for steps in (None, 6):
        plain = dllm.generate(model, prompts, scheduler=FixedQuota(steps=steps), **slots)
        mine = dllm.generate(model, prompts, scheduler=Learn2PD(None, steps=steps), **slots)
        assert mine.sequences == plain.sequences
        assert torch.equal(mine.trace.commit_step, plain.trace.commit_step)


def test_a_filter_that_accepts_all_takes_a_pass_a_block(
    tmp_path: Path, tiny: dllm.HostedModel
) -> None:
    scheduler = Learn2PD(above(tmp_path / "all.safetensors", 16, -1.0))
    out = dllm.generate(tiny, QUESTIONS, scheduler=scheduler, at_eos="ignore")
    assert out.metrics.num_forwards == 4


# End-of-text prediction.


def cut(scheduler: EndOfText, candidates: Candidates, masked: Tensor, **view: Any) -> list[int]:
    decision = scheduler.decide(candidates, view_of(masked, **view))
    assert decision.length is not None
    return decision.length.tolist()


def test_a_decoded_end_token_cuts_the_row() -> None:
    scheduler = EndOfText(FixedQuota())
    masked = torch.ones(3, 4, dtype=torch.bool)
    tokens = [[1, END, END, 1], [1, END, END, 1], [1, 1, 1, 1]]
    sure = [[0.5, 0.6, 0.9, 0.5], [0.9, 0.6, 0.8, 0.5], [0.9, 0.5, 0.5, 0.5]]
    assert cut(scheduler, proposals(tokens, sure), masked) == [3, 4, 4]
    # One that stands already cuts, though a better one is decoded behind it; given ones do not.
    held = torch.tensor([[MASK, END, MASK, MASK]])
    candidates = proposals([[1, 1, END, 1]], [[0.5, 0.5, 0.9, 0.5]])
    assert cut(scheduler, candidates, held == MASK, tokens=held) == [2]
    assert cut(scheduler, candidates, held == MASK, tokens=held, fixed=held != MASK) == [3]


def test_only_the_block_s_decoded_end_tokens_cut() -> None:
    held = torch.tensor([[END, MASK, MASK, END]])
    block = torch.tensor([[False, True, True, False]])
    candidates = proposals([[1, 1, 1, 1]], [[0.5, 0.9, 0.5, 0.5]])
    assert cut(EndOfText(FixedQuota()), candidates, held == MASK, tokens=held, block=block) == [4]


def test_a_predicted_end_token_cuts_while_none_is_decoded() -> None:
    row = EndOfText(FixedQuota(), rule="predicted")
    block = EndOfText(FixedQuota(), rule="predicted", scope="block")
    masked = torch.ones(1, 6, dtype=torch.bool)
    here = torch.tensor([[True] * 3 + [False] * 3])
    view: dict[str, Any] = {"block": here, "layout": replace(layout_of(1, 6), block_length=3)}
    tokens = [[1, END, END, 1, END, END]]
    guess = proposals(tokens, [[0.9, 0.3, 0.4, 0.5, 0.8, 0.7]])
    assert cut(row, guess, masked, **view) == [5]  # the surest of the row
    assert cut(block, guess, masked, **view) == [3]  # of the block
    decoded = proposals(tokens, [[0.5, 0.6, 0.7, 0.5, 0.9, 0.8]])
    assert cut(row, decoded, masked, **view) == [3]  # one that is decoded goes first
    none = proposals([[1] * 6], [[0.5] * 6])
    assert cut(row, none, masked, **view) == [6]


def test_only_accepted_end_tokens_cut_by_the_accepted_rule(tmp_path: Path) -> None:
    path = above(tmp_path / "f.safetensors", 4, 0.7)
    scheduler = EndOfText(Learn2PD(path, threshold=0.5), rule="accepted", scope="block")
    masked = torch.ones(2, 4, dtype=torch.bool)
    tokens = [[1, END, END, 1], [1, END, 1, END]]
    # Row 0: both are accepted, the first one cuts. Row 1: the best column is committed for the
    # quota's sake and is no end; the surest predicted end token cuts, at column 3.
    sure = [[0.5, 0.8, 0.9, 0.5], [0.65, 0.5, 0.4, 0.6]]
    assert cut(scheduler, proposals(tokens, sure), masked) == [2, 4]
    # An end token that the quota commits does not count, a surer one elsewhere would.
    committed = torch.tensor([[MASK, END, MASK, MASK]])
    guess = proposals([[1, END, 1, END]], [[0.5, 0.99, 0.5, 0.6]])
    assert cut(scheduler, guess, committed == MASK, tokens=committed) == [4]
    wide = replace(scheduler, scope="row")
    here = torch.tensor([[True] * 4 + [False] * 2])
    layout = replace(layout_of(1, 6), block_length=4)
    far = proposals([[1, 1, 1, 1, END, END]], [[0.6, 0.5, 0.5, 0.5, 0.3, 0.4]])
    everywhere = torch.ones(1, 6, dtype=torch.bool)
    assert cut(wide, far, everywhere, block=here, layout=layout) == [6]
    near = proposals([[1, END, 1, 1, END, END]], [[0.6, 0.8, 0.5, 0.5, 0.3, 0.99]])
    assert cut(wide, near, everywhere, block=here, layout=layout) == [2]


@pytest.mark.parametrize("rule", ["decoded", "predicted"])
def test_a_row_with_given_text_is_never_cut(rule: Any, tiny: dllm.HostedModel) -> None:
    masked = torch.tensor([[True, True, True, False]])
    scheduler = EndOfText(FixedQuota(), rule=rule)
    guess = proposals([[END] * 4], [[0.9, 0.5, 0.5, 0.5]])
    fixed = ~masked
    given: dict[str, Any] = {"fixed": fixed, "num_slots": torch.tensor([3])}
    assert cut(scheduler, guess, masked, **given) == [4]
    assert cut(scheduler, guess, masked, fixed=fixed) == [1]
    out = dllm.generate(tiny, QUESTIONS, scheduler=scheduler, max_new_tokens=16, fixed={14: "tom"})
    lengths = [
        len(sequence) - int(n)
        for sequence, n in zip(out.sequences, out.trace.prompt_length, strict=True)
    ]
    assert lengths == [16] * 3


def test_rows_that_are_cut_are_shorter_with_the_answer_in_them(tiny: dllm.HostedModel) -> None:
    plain = dllm.generate(tiny, QUESTIONS, scheduler="learn2pd")
    for rule in ("decoded", "predicted", "accepted"):
        scheduler = EndOfText(Learn2PD(), rule=rule)
        out = dllm.generate(tiny, QUESTIONS, scheduler=scheduler)
        assert out.texts == plain.texts
        assert max(map(len, out.sequences)) < max(map(len, plain.sequences))


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5 must be in"),
        ({"threshold": float("nan")}, "threshold=nan must be a number, in"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"filter": "no/such.safetensors"}, "no filter file 'no/such.safetensors'.*train-filter"),
        ({"filter": "."}, "no filter file"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Learn2PD(**options)


def good(width: int = 4) -> dict[str, Tensor]:
    return {"linear1.weight": torch.zeros(width, width), "linear1.bias": torch.zeros(width)}


@pytest.mark.parametrize(
    ("weights", "metadata", "message"),
    [
        ({**good(), "other": torch.zeros(1)}, None, r"it holds \['linear1.bias'"),
        ({"linear1.weight": torch.zeros(4, 4)}, None, "it holds"),
        ({**good(), "linear1.weight": torch.zeros(4, 3)}, None, r"\(4, 3\), expected \(4, 4\)"),
        ({**good(), "linear1.bias": torch.full((4,), torch.nan)}, None, "not finite"),
        (good(), {"learn2pd": "{"}, "metadata 'learn2pd' cannot be read"),
        (good(), {"learn2pd": "{}"}, "metadata 'learn2pd' cannot be read"),
        (good(), {"learn2pd": "3"}, "metadata 'learn2pd' cannot be read"),
    ],
)
def test_damaged_filters(
    weights: dict[str, Tensor], metadata: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.safetensors"
    save_file(weights, path, metadata)
    with pytest.raises(ValueError, match="is not a Learn2PD filter: .*" + message):
        read_filter(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100])
def test_what_is_no_filter_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        Learn2PD(str(path))


def test_a_filter_cut_off_in_the_middle(tmp_path: Path) -> None:
    path = Path(above(tmp_path / "f.safetensors", 8, 0.5))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_filter(path)


def test_blocks_that_do_not_fit(
    tmp_path: Path, tiny: dllm.HostedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"blocks of up to 16 columns, not block_length=32: `dllm"):
        dllm.generate(tiny, QUESTIONS, scheduler="learn2pd", block_length=32)
    with pytest.raises(ValueError, match=r"steps=7 .* multiple of the 4 blocks; steps=4 fits"):
        dllm.generate(tiny, QUESTIONS, scheduler=Learn2PD(steps=7))
    path = above(tmp_path / "f.safetensors", 16, 0.9, vocab_size=116, mask_token_id=0)
    dllm.generate(tiny, QUESTIONS[:1], scheduler=Learn2PD(path), block_length=8)
    assert "was trained on blocks of 16 columns, not of 8" in caplog.text


def test_a_filter_of_another_model_is_refused(tmp_path: Path, tiny: dllm.HostedModel) -> None:
    other = above(tmp_path / "f.safetensors", 16, 0.9, model="another")
    with pytest.raises(ValueError, match=r"model 'another' .*128.*116.*foreign=true"):
        dllm.generate(tiny, QUESTIONS, scheduler=Learn2PD(other))
    wrapped = EndOfText(Learn2PD(other))
    with pytest.raises(ValueError, match="model 'another'"):
        dllm.generate(tiny, QUESTIONS, scheduler=wrapped)
    assert dllm.generate(tiny, QUESTIONS, scheduler=Learn2PD(other, foreign=True)).texts
    unknown = above(tmp_path / "unknown.safetensors", 16, 0.9)  # a converted one has no origin
    assert dllm.generate(tiny, QUESTIONS, scheduler=Learn2PD(unknown)).texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "wino"}, "inner='wino' may take back"),
        ({"inner": "lopa"}, "inner='lopa' compares variants"),
        ({"inner": "threshold", "rule": "accepted"}, "inner='threshold' has no filter"),
        ({"rule": "guessed"}, "guessed"),
        ({"scope": "batch"}, "batch"),
    ],
)
def test_what_end_of_text_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedulers.registry.create({"name": "end_of_text", **options})


# The filter.


def test_the_filter_has_the_published_size() -> None:
    assert sum(weight.numel() for weight in Filter(32).parameters()) == 2112


def test_the_filter_pads_what_is_narrower() -> None:
    network = Filter(4, 3).requires_grad_(False)
    short = torch.rand(2, 3)
    full = torch.cat([short, torch.zeros(2, 1)], -1)
    torch.testing.assert_close(network(short), network(full)[:, :3])
    one, two, three = network.children()
    hidden = two(one(full).relu()).relu()
    torch.testing.assert_close(network(full), three(hidden))


def test_a_filter_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "made" / "f.safetensors"
    network = Filter(5, 4, Origin("m", 7, 6, 5, "bfloat16", "float32", {"prompts": 3.0}))
    write_filter(network, path)
    found = read_filter(path)
    assert (found.width, found.num_layers, found.origin) == (5, 4, network.origin)
    assert found.path == str(path)
    for name, weight in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
    assert not any(weight.requires_grad for weight in found.parameters())
    assert [file.name for file in path.parent.iterdir()] == ["f.safetensors"]


# The shipped filter.


def test_the_shipped_filter_is_the_embedded_model_s(tiny: dllm.HostedModel) -> None:
    shipped = read_filter("tiny")
    assert shipped.origin is not None
    assert shipped.origin.model == tiny.name == "tiny"
    assert shipped.origin.block_length == shipped.width == tiny.defaults["block_length"]
    shipped.check_model(tiny.spec)
    with pytest.raises(ValueError, match="was trained on model 'tiny'"):
        shipped.check_model(golden_model("llada_mha").spec)


def test_the_shipped_filter_decodes_a_batch(tiny: dllm.HostedModel) -> None:
    out = dllm.generate(tiny, QUESTIONS, scheduler="learn2pd")
    slow = dllm.generate(tiny, QUESTIONS, scheduler="fixed_quota")
    assert out.metrics.num_forwards < slow.metrics.num_forwards / 2
    texts = out.texts or ()
    assert all(answer in text for answer, text in zip(ANSWERS, texts, strict=True))
    for question, text in zip(QUESTIONS, texts, strict=True):
        assert dllm.generate(tiny, question, scheduler="learn2pd").texts == (text,)


# Training.


def some_examples(count: int = 20, width: int = 4) -> Examples:
    """Two blocks of each prompt, in which a column is final above one half."""
    source = torch.Generator().manual_seed(0)
    confidence = torch.rand(2 * count, width, generator=source)
    yes = torch.ones_like(confidence, dtype=torch.bool)
    return Examples(
        confidence, confidence > 0.5, yes, yes.clone(), torch.arange(count).repeat_interleave(2)
    )


def test_no_prompt_is_in_two_parts() -> None:
    parts = vars(split(some_examples(30), 0)).values()
    prompts = [set(part.prompt.tolist()) for part in parts]
    assert [len(part) for part in prompts] == [24, 3, 3]
    assert set.union(*prompts) == set(range(30))
    with pytest.raises(ValueError, match="9 prompts are too few: at least 10"):
        split(some_examples(9), 0)


def test_the_score_by_hand() -> None:
    network = Filter(4, 1)
    network.load_state_dict({"linear1.weight": torch.eye(4), "linear1.bias": torch.zeros(4)})
    confidence = torch.tensor([[2.0, 2.0, -2.0, 2.0], [2.0, -2.0, -2.0, 2.0]])
    final = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0]]).bool()
    masked = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    found = score(network, Examples(confidence, final, masked, real, torch.zeros(2).long()), 0.5)
    assert found.accuracy == pytest.approx(5 / 7)
    assert found.false_accepts == pytest.approx(1 / 4)
    assert found.masked_false_accepts == pytest.approx(1 / 3)
    assert found.masked_accepted == pytest.approx(3 / 6)
    assert found.masked_final == pytest.approx(3 / 6)
    right, wrong = torch.tensor(2.0).sigmoid().log(), torch.tensor(-2.0).sigmoid().log()
    assert found.loss == pytest.approx(float(-(5 * right + 2 * wrong) / 7))


def test_training_learns_and_leaves_the_seed_of_others_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    parts = split(some_examples(200), 0)
    cpu = torch.device("cpu")
    trained = Training(parts, Recipe(1, 200, 0.2), tmp_path / "state.pt", cpu)
    losses = list(trained.run())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[-1] < losses[0]
    assert score(trained.network, parts.test, 0.5).accuracy > 0.9
    with pytest.raises(ValueError, match=r"loss is nan after epoch 9: .* lr=1e\+30"):
        list(Training(parts, Recipe(epochs=9, learning_rate=1e30), tmp_path / "mad.pt", cpu).run())


def test_decided_columns_are_left_out_of_the_loss_on_request(tmp_path: Path) -> None:
    examples = some_examples()
    examples.masked[:, 0] = False
    parts, cpu = split(examples, 0), torch.device("cpu")
    counted = Training(parts, Recipe(masked_only=True), tmp_path / "a", cpu).counted
    assert not counted[:, 0].any()
    assert counted[:, 1:].all()
    assert Training(parts, Recipe(), tmp_path / "b", cpu).counted.all()


def test_examples_are_named_after_all_that_decides_them(tiny: dllm.HostedModel) -> None:
    plain = Settings(max_new_tokens=16, block_length=8, scheduler="fixed_quota", at_eos="stop")
    source = Source(tiny, QUESTIONS, plain, batch_size=2)
    names = source.names()
    assert len(set(names)) == 2
    assert source.names() == names
    changes: list[dict[str, Any]] = [
        {"max_new_tokens": 24},
        {"block_length": 16},
        {"scheduler": "fixed_quota:8"},
        {"at_eos": "ignore"},
        {"statistics_dtype": torch.float64},
    ]
    others = [
        replace(source, prompts=[*QUESTIONS[1:], QUESTIONS[0]]),
        *(replace(source, settings=replace(plain, **change)) for change in changes),
    ]
    assert all(set(other.names()).isdisjoint(names) for other in others)
    more = replace(source, prompts=[*QUESTIONS, QUESTIONS[0]])
    assert more.names()[0] == names[0]
    projection = next(weight for weight in tiny.network.parameters() if weight.dim() == 2)
    before = float(projection[0, 0])  # to be there again bit by bit: other tests use the model
    with torch.no_grad():
        projection[0, 0] = before + 1
        changed = source.names()
        projection[0, 0] = before
    assert set(changed).isdisjoint(names)
    with pytest.raises(ValueError, match="batch_size=0"):
        replace(source, batch_size=0)


# The command.


Command = Callable[..., Result]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`dllm train-filter` on 12 problems in batches of 6, at most 12 epochs, saved every 4."""
    monkeypatch.setattr(training, "SAVE_EVERY", 4)

    def invoke(*arguments: str) -> Result:
        command = "train-filter --task arithmetic --count 12 --batch-size 6 --max-new-tokens 16"
        words = [*command.split(), "--output", str(tmp_path / "f.safetensors"), *arguments]
        return CliRunner().invoke(app, words)

    return invoke


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many batches were decoded and epochs trained; `stop_*` interrupts before that one."""
    calls = {"collect": 0, "loss_of": 0, "stop_collect": -1, "stop_loss_of": -1}

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any) -> Any:
            if isinstance(arguments[1], Examples) and not torch.is_grad_enabled():
                return real(*arguments)  # of the score
            if calls[name] == calls[f"stop_{name}"]:
                raise KeyboardInterrupt
            calls[name] += 1
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(data, "collect")
    counted(training, "loss_of")
    return calls


def weights_of(path: Path) -> dict[str, Tensor]:
    return dict(read_filter(path).state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.slow
def test_train_filter_writes_a_filter_and_repeats_nothing(
    train: Command, count: dict[str, int], tmp_path: Path, tiny: dllm.HostedModel
) -> None:
    path = tmp_path / "f.safetensors"
    done = train("--epochs", "12")
    assert done.exit_code == 0, done.output
    assert "learn2pd:" in done.stdout
    assert (count["collect"], count["loss_of"]) == (2, 12)
    with safe_open(path, "pt") as file:
        origin = json.loads(file.metadata()["learn2pd"])
    assert (origin["model"], origin["block_length"], origin["vocab_size"]) == ("tiny", 16, 116)
    assert origin["figures"]["prompts"] == 12
    assert origin["figures"]["epochs"] == 12
    assert 0 <= origin["figures"]["test_masked_false_accepts"] <= 1
    first = weights_of(path)
    assert dllm.generate(tiny, QUESTIONS, scheduler=Learn2PD(str(path))).texts

    again = train("--epochs", "12", "--json")
    assert json.loads(again.stdout)["figures"]["examples"] == origin["figures"]["examples"]
    assert (count["collect"], count["loss_of"]) == (2, 12)
    assert same(weights_of(path), first)

    assert train("--epochs", "16").exit_code == 0  # more of them go on
    assert (count["collect"], count["loss_of"]) == (2, 16)
    assert not same(weights_of(path), first)
    assert train("--epochs", "12").exit_code == 0  # fewer begin anew
    assert same(weights_of(path), first)
    assert train("--epochs", "12", "--seed", "1", "--layers", "1").exit_code == 0
    assert read_filter(path).num_layers == 1


@pytest.mark.slow
def test_an_interrupted_run_goes_on(train: Command, count: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    count["stop_collect"], count["stop_loss_of"] = 1, 10
    stopped = train("--epochs", "12")
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    assert (count["collect"], count["loss_of"]) == (1, 0)
    count["stop_collect"] = -1
    assert train("--epochs", "12").exit_code == 130
    assert (count["collect"], count["loss_of"]) == (2, 10)
    assert not path.exists()
    count["stop_loss_of"] = -1
    assert train("--epochs", "12").exit_code == 0
    assert (count["collect"], count["loss_of"]) == (2, 14)  # from the eighth epoch on
    resumed = weights_of(path)
    for file in (tmp_path / "f.data").iterdir():
        file.unlink()
    assert train("--epochs", "12").exit_code == 0
    assert same(weights_of(path), resumed)


@pytest.mark.slow
def test_damaged_data_is_made_again(train: Command, count: dict[str, int], tmp_path: Path) -> None:
    assert train("--epochs", "4").exit_code == 0
    first = weights_of(tmp_path / "f.safetensors")
    whole, cut_off = sorted((tmp_path / "f.data").glob("*.safetensors"))
    content = cut_off.read_bytes()
    cut_off.write_bytes(content[: len(content) // 2])
    (state,) = (tmp_path / "f.data").glob("*.pt")
    state.write_bytes(state.read_bytes()[:-200])
    assert train("--epochs", "4").exit_code == 0
    assert (count["collect"], count["loss_of"]) == (3, 8)
    assert cut_off.read_bytes() == content
    save_file({"confidence": torch.zeros(1, 16)}, whole)
    assert train("--epochs", "4").exit_code == 0
    assert (count["collect"], count["loss_of"]) == (4, 8)
    assert same(weights_of(tmp_path / "f.safetensors"), first)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to run in, with files of prompts."""
    (tmp_path / "few.txt").write_text("one\n" * 3, encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--task arithmetic -o filter.pt", "output='filter.pt' must end in .safetensors"),
        ("", "give --prompts FILE or --task NAME"),
        ("--task arithmetic --prompts few.txt", "give --prompts FILE or --task NAME"),
        ("--task arithmetics", "did you mean 'arithmetic'"),
        ("--prompts none.txt", "there is no file of prompts 'none.txt'"),
        ("--prompts few.txt", "3 prompts are too few: at least 10"),
        ("--prompts empty.txt", "empty.txt holds no prompts"),
        ("--task arithmetic --count 9", "9 prompts are too few: at least 10"),
        ("--task arithmetic --count 0", "count=0 must be at least 1"),
        ("--prompts few.txt --count -1", "count=-1 must be at least 1"),
        ("--task arithmetic --layers 0", "layers=0"),
        ("--task arithmetic --epochs 0", "epochs=0"),
        ("--task arithmetic --lr 0", "lr=0.0 must be positive"),
        ("--task arithmetic --lr nan", "lr=nan must be a number"),
        ("--task arithmetic --threshold 1.5", "threshold=1.5 must be in [0, 1]"),
        ("--task arithmetic --batch-size 0", "batch_size=0"),
        ("--task arithmetic --at-eos halt", "at_eos='halt'"),
        ("--task arithmetic --steps 7", "steps=7"),
        ("--task arithmetic --model no-such-folder", "not an existing folder"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: str,
    message: str,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["dllm", "train-filter", "-o", "f.safetensors", *arguments.split()]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert message in told
    assert inside.is_dir()
