"""The context filter: its rule by hand, its network beside loops, its files and their training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.eval.tasks import find_task
from dllm.learn2pd import Origin
from dllm.learn2pd.context import (
    REACH,
    SUMMARIES,
    ContextNetwork,
    Reading,
    read_context_filter,
    write_context_filter,
)
from dllm.schedulers.context_filter import ContextFilter, read
from dllm.settings import Settings
from dllm.state.candidates import Candidates
from dllm.training.context_filter import Course, Lesson, Recipe, Teacher, join, score, split, train
from tests.support.models import golden_model, random_prompts
from tests.support.views import MASK, view_of

END = 9  # the end token of the views by hand
PROBLEMS = find_task("arithmetic").take(48, "validation")


def proposals(tokens: list[list[int]], confidence: list[list[float]]) -> Candidates:
    """Candidates that propose these tokens of eleven with these probabilities."""
    token, first = torch.tensor(tokens), torch.tensor(confidence, dtype=torch.float64)
    rest = ((1 - first) / 10)[..., None].expand(-1, -1, 11)
    return Candidates(rest.scatter(-1, token[..., None], first[..., None]).log(), token)


def random_reading(seed: int, rows: int = 2, width: int = 30) -> Reading:
    source = torch.Generator().manual_seed(seed)
    inside = torch.ones(rows, width, dtype=torch.bool)
    inside[:, :2] = False
    inside[0, -5:] = False
    confidence = torch.rand(rows, width, generator=source)
    return Reading(
        open=(torch.rand(rows, width, generator=source) < 0.6) & inside,
        inside=inside,
        shown=torch.randint(0, 7, (rows, width), generator=source),
        confidence=confidence,
        second=(1 - confidence) * torch.rand(rows, width, generator=source),
        entropy=torch.rand(rows, width, generator=source),
    )


# The rule by hand.


def test_columns_near_the_first_mask_need_less() -> None:
    masked = torch.tensor([[False, True, True, True, True, True]])
    candidates = proposals([[1] * 6], [[0.0, 0.5, 0.8, 0.8, 0.8, 0.95]])
    scheduler = ContextFilter(threshold=0.7, far_threshold=0.9, reach=2)
    commit = scheduler.decide(candidates, view_of(masked)).commit
    assert commit.tolist() == [[False, False, True, False, False, True]]
    further = replace(scheduler, reach=3).decide(candidates, view_of(masked)).commit
    assert further.tolist() == [[False, False, True, True, False, True]]
    none_near = replace(scheduler, reach=0).decide(candidates, view_of(masked)).commit
    assert none_near.tolist() == [[False, False, False, False, False, True]]


def test_the_surest_column_goes_in_any_case() -> None:
    masked = torch.tensor([[True, True, True], [True, False, False]])
    candidates = proposals([[1] * 3] * 2, [[0.2, 0.4, 0.3], [0.1, 0.9, 0.9]])
    commit = ContextFilter().decide(candidates, view_of(masked)).commit
    assert commit.tolist() == [[False, True, False], [True, False, False]]


def test_with_a_filter_the_surest_is_its_own(tmp_path: Path) -> None:
    """A network that finds right what holds token 3, however sure the model is."""
    network = ContextNetwork(11, hidden=1, embedding=1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.embedding.weight[3] = 1
        network.near.weight[0, -1, REACH] = 10
        network.middle.weight.fill_(1)
        network.out.weight.fill_(1)
        network.out.bias.fill_(-5)
    write_context_filter(network, tmp_path / "three.safetensors")
    scheduler = ContextFilter(str(tmp_path / "three.safetensors"), threshold=0.9)
    candidates = proposals([[1, 3, 2, 3]], [[0.99, 0.2, 0.99, 0.3]])
    view = view_of(torch.tensor([[True, True, True, False]]))
    assert scheduler.decide(candidates, view).commit.tolist() == [[False, True, False, False]]


def test_a_filter_reads_slots_of_the_row_alone() -> None:
    masked = torch.tensor([[False, False, True, True, False, True]])
    tokens = torch.tensor([[4, 5, MASK, MASK, 6, MASK]])
    fixed = torch.tensor([[True, True, False, False, False, False]])
    sizes: dict[str, Any] = {"prompt_length": torch.tensor([2]), "length": torch.tensor([5])}
    view = view_of(masked, tokens=tokens, fixed=fixed, **sizes)
    found = read(proposals([[1, 2, 3, 7, 8, 9]], [[0.5] * 6]), view)
    assert found.inside.tolist() == [[False, False, True, True, True, False]]
    assert found.open.tolist() == [[False, False, True, True, False, False]]
    assert found.shown.tolist() == [[0, 0, 3, 7, 6, 0]]
    torch.testing.assert_close(found.second, torch.full((1, 6), 0.05))


# The network beside loops over rows and columns.


def logit_of(network: ContextNetwork, reading: Reading, row: int, column: int) -> float:
    """The network's logit of a column, from the definition."""
    width = reading.open.shape[1]
    hidden = network.state_dict()["near.bias"].clone()
    for offset in range(-REACH, REACH + 1):
        other = column + offset
        if not 0 <= other < width:
            continue
        values = [0.0] * 4
        if reading.open[row, other]:
            sure = min(max(float(reading.confidence[row, other]), 1e-6), 1 - 1e-6)
            second = max(float(reading.second[row, other]), 1e-6)
            values = [1.0, 2.8 - math.log(sure / (1 - sure)) / 5, math.log(second) / 5 + 2.8]
            values.append(float(reading.entropy[row, other]))
        shown = network.embedding.weight[reading.shown[row, other]].tolist()
        values += shown if reading.inside[row, other] else [0.0] * len(shown)
        hidden += network.near.weight[:, :, offset + REACH] @ torch.tensor(values)
    hidden += network.left.weight @ torch.tensor(left_of(reading, row, column))
    middle = network.middle.weight @ hidden.relu() + network.middle.bias
    return float(network.out.weight[0] @ middle.relu() + network.out.bias[0])


def left_of(reading: Reading, row: int, column: int) -> list[float]:
    """The figures of what is open on a column's left, from the definition."""
    width = reading.open.shape[1]
    open_ = [at for at in range(width) if reading.open[row, at]]
    left = [float(reading.confidence[row, at]) for at in open_ if at < column]
    counts = [len(left), *(sum(one < level for one in left) for level in (0.5, 0.9, 0.97))]
    doubt = math.sqrt(sum(1 - one for one in left))
    distance = min(max(column - (open_[0] if open_ else 0), -1), 64) / 16
    share = len(open_) / max(int(reading.inside[row].sum()), 1)
    return [*map(math.log1p, counts), doubt, distance, share]


@pytest.mark.parametrize("seed", range(3))
def test_the_network_is_its_definition(seed: int) -> None:
    reading = random_reading(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ContextNetwork(7, hidden=6, embedding=3).requires_grad_(False)
    found = network(reading)
    for row in range(2):
        expected = [logit_of(network, reading, row, column) for column in range(30)]
        torch.testing.assert_close(found[row], torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert reading.summaries().shape[-1] == SUMMARIES


def test_a_row_without_masks_has_finite_logits() -> None:
    reading = replace(random_reading(0), open=torch.zeros(2, 30, dtype=torch.bool))
    assert ContextNetwork(7, hidden=2)(reading).isfinite().all()
    certain = replace(random_reading(0), confidence=torch.ones(2, 30), second=torch.zeros(2, 30))
    assert ContextNetwork(7, hidden=2)(certain).isfinite().all()


# Files.


def origin(**other: Any) -> Origin:
    told: Any = {"model": "some", "vocab_size": 116, "mask_token_id": 0, "block_length": 64}
    told |= {"model_dtype": "float32", "confidence_dtype": "float32", "figures": {}}
    return Origin(**{**told, **other})


def test_a_filter_is_read_as_it_was_written(tmp_path: Path) -> None:
    network = ContextNetwork(9, hidden=5, embedding=2, origin=origin(vocab_size=9))
    write_context_filter(network, tmp_path / "f.safetensors")
    found = read_context_filter(tmp_path / "f.safetensors")
    assert found.origin == network.origin
    reading = random_reading(1)
    assert torch.equal(found(reading), network.requires_grad_(False)(reading))
    assert found.on(torch.device("cpu")) is found
    assert not list(tmp_path.glob("*.part"))


WEIGHTS: dict[str, Tensor] = dict(ContextNetwork(9, hidden=5).state_dict())
BROKEN = [
    ({"a": torch.ones(1)}, "no \\['embedding.weight', 'near.weight'\\]"),
    ({**WEIGHTS, "near.weight": torch.ones(3)}, "1 axes"),
    ({**WEIGHTS, "out.weight": torch.ones(1, 4)}, "size mismatch for out.weight"),
    ({**WEIGHTS, "out.bias": torch.tensor([math.nan])}, "out.bias is not finite"),
]


@pytest.mark.parametrize(("weights", "message"), BROKEN, ids=lambda given: str(given)[:12])
def test_a_broken_file_is_explained(
    weights: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=f"(?s)is not a context filter: .*{message}"):
        ContextFilter(str(tmp_path / "f.safetensors"))


def test_what_is_no_filter_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no filter file 'no\.safetensors': `dllm train-context"):
        ContextFilter("no.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        ContextFilter(str(tmp_path / "text.safetensors"))
    save_file(WEIGHTS, tmp_path / "f.safetensors", {"context_filter": "[]"})
    with pytest.raises(ValueError, match="metadata 'context_filter' cannot be read"):
        ContextFilter(str(tmp_path / "f.safetensors"))
    with pytest.raises(ValueError, match=r"far_threshold=1\.5 must be in"):
        ContextFilter(far_threshold=1.5)


def test_a_filter_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trained on model 'tiny' .*weights=null"):
        dllm.generate(golden_model("llada_gqa"), random_prompts(1), scheduler="context_filter:tiny")


# What the shipped filter gives.


def test_the_shipped_filter_needs_few_forwards(tiny: dllm.HostedModel) -> None:
    """A part of docs/notes/front.md: 97 % at 3.9 forwards there, stepwise 98.6 % at 34."""
    out = dllm.generate(
        tiny,
        [problem.prompt for problem in PROBLEMS],
        scheduler="context_filter:tiny",
        max_new_tokens=64,
        block_length=64,
    )
    assert out.texts is not None
    task = find_task("arithmetic")
    right = sum(task.is_correct(p, text) for p, text in zip(PROBLEMS, out.texts, strict=True))
    assert right >= len(PROBLEMS) - 3
    assert sum(row.forwards for row in out.metrics.rows) <= 4.3 * len(PROBLEMS)


# The training.


def course_of(model: dllm.HostedModel, count: int) -> Course:
    problems = sorted(find_task("arithmetic").take(count, "train"), key=lambda p: len(p.prompt))
    assert model.tokenizer is not None
    encode: Any = model.tokenizer.encode
    answers = [encode(problem.response, add_special_tokens=False) for problem in problems]
    settings = Settings(max_new_tokens=48, block_length=48)
    return Course(model, [problem.prompt for problem in problems], answers, settings, 8)


@pytest.fixture(scope="module")
def lesson(tiny: dllm.HostedModel) -> list[Lesson]:
    return list(course_of(tiny, 12).lessons(None, torch.Generator().manual_seed(0)))


def test_a_teacher_keeps_rows_on_the_way_to_their_answer(tiny: dllm.HostedModel) -> None:
    course = course_of(tiny, 6)
    reference = torch.tensor([[*row, *[1] * 48][:48] for row in course.references])
    for threshold in (0.0, 1.0):  # all that is right, or one column a step
        limits = torch.tensor([[threshold, threshold, 4.0]]).expand(6, 3)
        passes: list[Lesson] = []
        teacher = Teacher(reference, limits, None, passes.append)
        out = dllm.generate(tiny, course.prompts, course.settings, scheduler=teacher, batch_size=6)
        task = find_task("arithmetic")
        problems = sorted(find_task("arithmetic").take(6, "train"), key=lambda p: len(p.prompt))
        assert out.texts is not None
        assert all(task.is_correct(p, text) for p, text in zip(problems, out.texts, strict=True))
        forwards = [row.forwards for row in out.metrics.rows]
        seen = torch.cat([part.prompt for part in passes])
        assert torch.bincount(seen, minlength=6).tolist() == forwards
        assert (max(forwards) <= 8) == (threshold == 0)


def test_rows_that_leave_take_nobody_s_answer(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than a few prompts finished rows leave, and the others move to their seats."""
    near = torch.rand(40, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.6
    drawn = torch.stack([near, (near + 1) / 2, torch.full((40,), 8.0)], 1)
    given = count()

    def limits(self: Course, rows: int, *_: object) -> torch.Tensor:
        return drawn[[next(given) % 40 for _ in range(rows)]]  # batch after batch, those of each

    monkeypatch.setattr(Course, "_limits", limits)
    course, generator = course_of(tiny, 40), torch.Generator()
    (together,) = replace(course, batch_size=40).lessons(None, generator)
    few = join(list(course.lessons(None, generator)))  # eight at a time keep their seats
    for prompt in range(40):
        mine, alone = (seen.at(seen.prompt == prompt) for seen in (together, few))
        counted = mine.counted
        assert torch.equal(counted, alone.counted), prompt
        assert torch.equal(mine.right & counted, alone.right & counted), prompt
        for name in ("shown", "confidence"):
            readings = (getattr(lesson.reading, name) * counted for lesson in (mine, alone))
            torch.testing.assert_close(*readings)


def test_a_teacher_lets_right_proposals_pass() -> None:
    masked = torch.ones(3, 4, dtype=torch.bool)
    candidates = proposals([[1, 2, 3, 4]] * 3, [[0.9, 0.8, 0.5, 0.95]] * 3)
    reference = torch.tensor([[1, 5, 3, 4], [6, 2, 3, 5], [6, 5, 5, 5]])
    seen: list[Lesson] = []
    # Near are two columns; in the second row no right one passes, in the third none is right.
    limits = torch.tensor([[0.7, 0.94, 2.0], [0.85, 0.94, 2.0], [0.0, 0.0, 2.0]])
    decision = Teacher(reference, limits, None, seen.append).decide(candidates, view_of(masked))
    assert decision.commit.tolist() == [
        [True, False, False, True],
        [False, True, False, False],
        [False, False, False, True],
    ]
    assert decision.tokens is not None
    assert torch.equal(decision.tokens, reference)
    assert seen[0].right.tolist() == [
        [True, False, True, True],
        [False, True, True, False],
        [False] * 4,
    ]


def test_lessons_say_which_proposals_are_right(
    lesson: list[Lesson], tiny: dllm.HostedModel
) -> None:
    course = course_of(tiny, 12)
    for part in lesson:
        reading = part.reading
        assert reading.open.shape == part.right.shape == (len(part.prompt), 48)
        for row, prompt in enumerate(part.prompt.tolist()):
            answer = [*course.references[prompt], *[1] * 48][:48]
            expected = [
                token == right
                for token, right in zip(reading.shown[row].tolist(), answer, strict=True)
            ]
            assert part.right[row][reading.open[row]].tolist() == [
                one
                for one, waits in zip(expected, reading.open[row].tolist(), strict=True)
                if waits
            ]
            shown = reading.shown[row]
            assert not part.counted[row][(shown == 1).int().cumsum(0) > 3].any()
    assert {0, 8} <= set(torch.cat([part.prompt for part in lesson]).tolist())


def test_lessons_split_by_prompt(lesson: list[Lesson]) -> None:
    whole = join(lesson)
    learnt, held = split(whole, 12, 0)
    assert len(learnt.prompt) + len(held.prompt) == len(whole.prompt)
    assert not set(learnt.prompt.tolist()) & set(held.prompt.tolist())
    with pytest.raises(ValueError, match="9 prompts are too few: at least 10"):
        split(whole, 9, 0)


def test_training_learns_and_repeats_itself(lesson: list[Lesson]) -> None:
    whole = join(lesson)
    steps: list[int] = []
    one = train(whole, 116, Recipe(steps=60), 60, steps.append)
    other = train(whole, 116, Recipe(steps=60), 60, lambda step: None)
    assert steps == [50, 60]
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    untrained = train(whole, 116, Recipe(steps=1, learning_rate=1e-9), 1, lambda step: None)
    before, after = (score(network, whole, 0.9)["test_loss"] for network in (untrained, one))
    assert after < 0.7 * before
    figures = score(one, whole, 0.0)
    assert figures["test_accepted"] == 1
    wrong = (whole.counted & ~whole.right).sum() / whole.counted.sum()
    assert figures["test_false_accepts"] == pytest.approx(float(wrong), abs=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training(lesson: list[Lesson]) -> None:
    broken = replace(
        lesson[0].reading, entropy=torch.full_like(lesson[0].reading.entropy, math.nan)
    )
    with pytest.raises(ValueError, match=r"lower rate than lr=0\.004"):
        train(replace(lesson[0], reading=broken), 116, Recipe(), 1, lambda step: None)


COMMAND = ["train-context-filter", "--task", "arithmetic", "--count", "12", "--steps", "4"]
COMMAND += ["-n", "32", "-b", "32"]


def test_the_command_writes_a_filter(tmp_path: Path, tiny: dllm.HostedModel) -> None:
    path = tmp_path / "f.safetensors"
    words = [*COMMAND, "--reference", "written", "--output", str(path), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["filter"], told["vocab_size"], told["block_length"]) == (str(path), 116, 32)
    assert {"prompts", "test_loss", "test_accepted", "rounds"} <= set(told["figures"])
    first = read_context_filter(path).state_dict()
    assert dllm.generate(tiny, "copy: tom.", scheduler=ContextFilter(str(path))).texts
    path.unlink()
    again = CliRunner().invoke(app, words[:-1])
    assert f"context_filter:{path}" in again.output.replace("\n", "")
    assert all(map(torch.equal, first.values(), read_context_filter(path).state_dict().values()))


def test_references_may_be_decoded(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    done = CliRunner().invoke(app, [*COMMAND, "--reference", "threshold:0.95", "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert read_context_filter(path).origin is not None


WRONG = [
    (["--prompts", "none.txt", "--reference", "written"], "give --prompts FILE or --task NAME"),
    (["--reference", "fixed_qota"], "fixed_quota"),
    (["--count", "9"], "9 prompts are too few"),
    (["--rounds", "0"], "rounds=0 must be at least 1"),
    (["-o", "f.pt"], "must end in .safetensors"),
]


@pytest.mark.parametrize(("more", "message"), WRONG, ids=lambda given: str(given)[:20])
def test_wrong_input_of_the_command(
    more: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*COMMAND, "-o", "f.safetensors", *more])
    assert done.exit_code != 0
    assert message in str(done.exception or done.output)
