"""ParallelBench: gold answers are right, others wrong, and the ideal model's limits by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from typer.testing import CliRunner

import dllm
from benchmarks import ideal_marginals
from dllm.cli.main import app
from dllm.eval.run.run import Run
from dllm.eval.run.summary import summarise
from dllm.eval.tasks import TASKS, Task, find_task
from dllm.eval.tasks.parallel_bench import FAMILIES, Question, Selection, select, waiting_line
from dllm.eval.tasks.parallel_bench import ideal as closed_forms
from dllm.eval.tasks.parallel_bench.grid import (
    EMPTY,
    SIZE,
    Grid,
    full_grids,
    latin_square,
    sudoku,
    units,
)
from dllm.eval.tasks.parallel_bench.ideal import Ideal
from dllm.eval.tasks.parallel_bench.instance import Instance
from dllm.eval.tasks.parallel_bench.waiting_line import (
    NAMES,
    OPERATIONS,
    Line,
    WaitingLine,
    read_list,
    write_list,
)
from dllm.eval.tasks.task import Split, TaskOptions, split_of
from dllm.settings import resolve
from tests.support.answers import answer_with

LISTS = tuple(OPERATIONS)
SPLITS: tuple[Split, ...] = ("test", "train")


def instances(family: str, count: int, names: int = 4) -> list[Instance]:
    source = random.Random(f"test-{family}")
    return [FAMILIES[family](source, names) for _ in range(count)]


def questions(count: int = 24, name: str = "parallel_bench", **options: Any) -> list[Question]:
    problems = find_task(name, TaskOptions(**options)).take(count)
    return [problem for problem in problems if isinstance(problem, Question)]


# What is right.


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_answers_are_right_and_wrong_ones_are_not(family: str) -> None:
    for instance in instances(family, 30):
        good = instance.verdict(f" {instance.response}\n")
        assert (good.loose, good.strict, good.answer) == (True, True, instance.solution)
        around = instance.verdict(f"[Here] it is:\n{instance.response}\nThat is all.")
        assert (around.loose, around.strict) == (True, False)
        answer = instance.solution
        wrong = [
            (*answer[:-1], "Nobody"),  # somebody else
            (*answer[:-1], answer[-2]),  # the same twice
            answer[:-1],
            (),
        ]
        for other in wrong:
            bad = instance.verdict(instance.write(other))
            assert (bad.loose, bad.strict) == (False, False), other
            assert not instance.is_right(other)
        assert not instance.is_right((*answer, answer[0]))
        assert not instance.verdict("").loose
        assert not instance.verdict(instance.response[1:-1]).strict


@pytest.mark.parametrize("family", LISTS)
def test_a_line_is_right_just_when_it_is_an_output(family: str) -> None:
    line = Line(("Gus", "Ada", "Max"), "Zoe", 2)
    instance = WaitingLine(family, line, ())
    outputs = list(instance.outputs())
    assert len(set(outputs)) == len(outputs)
    assert len({len(output) for output in outputs}) == 1
    right = {
        answer
        for length in range(5)
        for answer in product((*line.names, line.new), repeat=length)
        if instance.is_right(answer)
    }
    assert right == set(outputs)


def test_the_operations_do_what_they_say() -> None:
    line = Line(("Gus", "Ada", "Max"), "Zoe", 2)
    found = {
        name: ["".join(n[0] for n in r) for r in o.results(line)] for name, o in OPERATIONS.items()
    }
    assert found == {
        "copy": ["GAM"],
        "reverse": ["MAG"],
        "sort": ["AGM"],
        "shuffle": ["GMA", "AGM", "AMG", "MGA", "MAG"],
        "insert_index": ["GZAM"],
        "insert_random": ["ZGAM", "GZAM", "GAZM", "GAMZ"],
        "remove_index": ["GM"],
        "remove_random": ["AM", "GM", "GA"],
        "replace_index": ["GZM"],
        "replace_random": ["ZAM", "GZM", "GAZ"],
    }  # fmt: skip


@pytest.mark.parametrize("family", LISTS)
def test_lines_reach_every_place(family: str) -> None:
    made = [waiting_line.make(random.Random(seed), 3, family) for seed in range(200)]
    last = 4 if family == "insert_index" else 3
    assert {m.line.place for m in made} == set(range(1, last + 1))
    for m in made:
        assert len({*m.line.names, m.line.new}) == 4
        assert m.is_right(m.solution)
    many = {m.solution.index(m.line.new) for m in made if m.line.new in m.solution}
    assert len(many) == {"insert": last if "index" in family else 4, "replace": 3}.get(
        family.split("_")[0], 0
    )


def test_fifteen_names_are_shuffled_without_listing_all_orders() -> None:
    made = waiting_line.make(random.Random(0), 15, "shuffle")
    assert made.is_right(made.solution)
    assert not made.is_right(made.line.names)


# The grids.


def brute_force(cells: Sequence[str], boxes: bool, symbols: Sequence[str]) -> list[tuple[str, ...]]:
    """Every way to fill the empty cells that keeps the rules, by trying all of them."""
    places = [place for place, cell in enumerate(cells) if cell == EMPTY]
    found = []
    for filling in product(symbols, repeat=len(places)):
        grid = list(cells)
        for place, symbol in zip(places, filling, strict=True):
            grid[place] = symbol
        rows = [grid[row * SIZE : row * SIZE + SIZE] for row in range(SIZE)]
        groups = [*rows, *(list(column) for column in zip(*rows, strict=True))]
        if boxes:
            groups += [
                [rows[top + down][left + across] for down in (0, 1) for across in (0, 1)]
                for top in (0, 2)
                for left in (0, 2)
            ]
        if all(sorted(group) == sorted(symbols) for group in groups):
            found.append(tuple(grid))
    return found


def test_sudokus_have_twelve_clues_and_one_solution() -> None:
    source = random.Random(0)
    puzzles = [sudoku(source) for _ in range(2000)]  # one in some hundred had to be redrawn
    assert all(len(list(puzzle.outputs())) == 1 for puzzle in puzzles)
    for puzzle in puzzles[:100]:
        assert sum(cell != EMPTY for cell in puzzle.cells) == 12
        assert brute_force(puzzle.cells, True, puzzle.symbols) == [puzzle.solution]


def test_latin_squares_leave_a_choice_and_keep_what_is_given() -> None:
    source, counts = random.Random(0), set()
    for _ in range(60):
        puzzle = latin_square(source)
        counts.add(sum(cell != EMPTY for cell in puzzle.cells))
        outputs = list(puzzle.outputs())
        assert len(outputs) >= 2
        assert puzzle.solution in outputs
        assert all(puzzle.is_right(output) for output in outputs)
        others = [tuple(puzzle.symbols[d] for d in grid) for grid in full_grids(boxes=False)]
        assert sorted(outputs) == sorted(other for other in others if puzzle.is_right(other))
    assert counts == {2, 3, 4, 5, 6}


def test_the_solver_finds_what_trying_all_finds() -> None:
    filled = tuple("1234341221434321")
    for boxes in (True, False):
        cells = tuple(
            EMPTY if place in (0, 1, 4, 5, 10, 15) else cell for place, cell in enumerate(filled)
        )
        puzzle = Grid(cells, tuple("1234"), boxes, "", filled)
        assert sorted(puzzle.outputs()) == sorted(brute_force(cells, boxes, "1234"))
    assert len(set(full_grids(boxes=False))) == 576
    assert len(set(full_grids(boxes=True))) == 288
    assert [len(units(boxes)) for boxes in (False, True)] == [8, 12]


@pytest.mark.parametrize(
    "text",
    [
        "1|2|3|4\n3|4|1|2\n2|1|4|3\n4|3|2|1",
        "[[1, 2, 3, 4],\n [3, 4, 1, 2],\n [2, 1, 4, 3],\n [4, 3, 2, 1]]",
        "1 _ 3 4\n3 4 1 2\nso\n```\n1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1\n```\nin 4 rows of 4",
    ],
)
def test_grids_are_read_however_they_are_written(text: str) -> None:
    puzzle = Grid((EMPTY,) * 16, tuple("1234"), True, "", tuple("1234341221434321"))
    assert puzzle.verdict(text).answer == puzzle.solution
    assert puzzle.verdict(text).loose
    assert not puzzle.verdict(text).strict
    assert puzzle.read("1 2 3 4\n3 4 1 2\n2 1 4 3") is None
    assert puzzle.read("1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 5") is None


# Lists as text.

WORDS = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1)
OUTSIDE = st.text().filter(lambda text: "[" not in text)


@settings(deadline=None, max_examples=15)
@given(st.text(), WORDS, OUTSIDE)
def test_a_list_is_read_among_any_text(before: str, items: list[str], after: str) -> None:
    assert read_list(before + write_list(items) + after) == tuple(items)


@settings(deadline=None)
@given(st.text(alphabet="[],\"' ab\n"))
def test_reading_never_fails(text: str) -> None:
    found = read_list(text)
    start = text.rfind("[")
    assert (found is None) == (start < 0 or "]" not in text[start:])
    if found is not None:
        assert all(set(item) <= set("ab\"' \n") and item.strip("\"' \n") == item for item in found)
        assert read_list(write_list(found)) == (found if found != ("",) else ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Ada, Ben]", ("Ada", "Ben")),
        ("[ \"Ada\" ,'Ben' ]", ("Ada", "Ben")),
        ("[Ada] no: [Ben]", ("Ben",)),  # the last list
        ("[Ada, [Ben, Gus] Max]", ("Ben", "Gus")),
        ("[Ada, Ben] and more]", ("Ada", "Ben")),  # up to the first end
        ("[Ada,\n **Ben**]", ("Ada", "Ben")),
        ("[Ada, Ben,]", ("Ada", "Ben", "")),
        ("[]", ()),
        ("[ ]", ()),
        ("[Ada, Ben", None),  # cut off
        ("Ada, Ben]", None),
        ("", None),
    ],
)
def test_lists_by_hand(text: str, expected: tuple[str, ...] | None) -> None:
    assert read_list(text) == expected


# The task.


def test_every_family_has_the_same_share() -> None:
    asked = questions(36)
    assert [question.family for question in asked] == list(FAMILIES) * 3
    assert len({question.id for question in asked}) == 36
    lengths = {
        len(q.instance.line.names) for q in questions(240) if isinstance(q.instance, WaitingLine)
    }
    assert lengths == {3, 4, 5, 6}


def test_the_seed_decides_the_questions_and_splits_share_none() -> None:
    task = TASKS["parallel_bench"]
    assert task.take(40) == task.take(40)
    assert task.take(12, seed=1) != task.take(12, seed=0)
    held_out, trained_on = (
        {q.instance.question for q in task.take(120, split) if isinstance(q, Question)}
        for split in SPLITS
    )
    assert {split_of(question) for question in held_out} == {"test"}
    assert {split_of(question) for question in trained_on} == {"train"}
    assert len(held_out) == len(trained_on) == 120


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_prompts_show_solved_questions_of_the_train_split(style: str) -> None:
    for question in questions(24, style=style, shots=2):
        if style == "chat":
            roles = [role for role, _ in question.turns]
            assert roles == ["user", "assistant", "user", "assistant", "user"]
            texts = [text for role, text in question.turns if role == "user"]
        else:
            assert question.turns == ()
            parts = question.prompt.split("Task: ")[1:]
            texts = [part.partition("\nAnswer:\n")[0] for part in parts]
        assert texts[-1] == question.instance.question
        assert [split_of(text) for text in texts] == ["train", "train", "test"]
        assert question.instance.verdict(question.response).strict
        assert question.response not in texts[-1] or question.family == "copy"
    assert questions(1, style=style, shots=0)[0].given == (
        f"Task: {questions(1)[0].instance.question}\nAnswer:\n"
        if style == "plain"
        else [{"role": "user", "content": questions(1)[0].instance.question}]
    )


def test_solved_questions_of_training_problems_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_line, "NAMES", NAMES[:4])  # so few that they meet often
    task = find_task("parallel_bench:shuffle,names=2")
    for question in islice(task.problems("train", 0, 100), 100):
        assert isinstance(question, Question)
        assert question.prompt.count(question.instance.question) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Selection()),
        ("shuffle", Selection(("shuffle",))),
        ("copy, shuffle,names=15", Selection(("copy", "shuffle"), 15, 15)),
        ("names=2-49", Selection(shortest=2, longest=49)),
        ("sort,sort", Selection(("sort",))),
    ],
)
def test_parts_of_the_benchmark_are_chosen_by_name(text: str, expected: Selection) -> None:
    assert select(text, TaskOptions()) == expected
    task = find_task(f"parallel_bench:{text}", TaskOptions(style="chat", shots=0))
    assert task.options == {**expected.describe(), "style": "chat", "shots": 0}
    json.dumps(task.options)
    assert {q.family for q in questions(24, f"parallel_bench:{text}")} == set(expected.families)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("parallel_bench:shufle", {}, "unknown family 'shufle'.*did you mean 'shuffle'"),
        ("parallel_bench:names=1", {}, "names=1-1 must lie between 2 and 49"),
        ("parallel_bench:names=3-50", {}, "names=3-50"),
        ("parallel_bench:names=6-3", {}, "the smaller number first"),
        ("parallel_bench:names=few", {}, "as names=15 or names=3-6"),
        ("parallel_bench:names=3,names=4", {}, "write a length once"),
        ("parallel_bench", {"style": "chatt"}, "unknown style 'chatt'.*did you mean 'chat'"),
        ("parallel_bench", {"data": Path("x")}, "--data: parallel_bench makes its own problems"),
        ("parallel_bench", {"run_code": True, "shots": 1}, "^--run-code: "),
        (
            "lists",
            {"style": "chat"},
            "only cpp_infilling, gsm8k, humaneval, json_mode_eval, own, smiles and, for some of "
            "them, json, ",
        ),
        ("parallelbench", {}, "did you mean 'parallel_bench'"),
    ],
)
def test_what_cannot_be_asked_says_so(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_task(name, TaskOptions(**options))


def run_of(model: dllm.HostedModel, task: Task) -> Run:
    return Run(model, task, resolve(model.defaults, None, {}), 4)


def test_scores_of_each_family_reach_the_summary(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = find_task("parallel_bench")
    asked = {q.prompt: q for q in questions(24)}
    good = {"copy", "shuffle", "sudoku"}

    def answer(prompt: str) -> str:
        question = asked[prompt]
        if question.family not in good:
            return "[nobody]\n1 2"
        around = "So: " if question.family == "copy" else ""
        return f"{around}{question.response}\n\nTask: another [Ada]\n1 1 1 1"

    answer_with(monkeypatch, answer)
    results = list(run_of(tiny, task).results(list(asked.values()), tmp_path / "rows.jsonl"))
    summary = summarise(results)
    assert summary.scores == {
        **{family: float(family in good) for family in FAMILIES},
        "strict": pytest.approx(2 / 12),
        "loose": pytest.approx(3 / 12),
    }
    assert summary.accuracy == pytest.approx(3 / 12)
    again = list(run_of(tiny, task).results(list(asked.values()), tmp_path / "rows.jsonl"))
    assert {r.id: r for r in again} == {r.id: r for r in results}


def test_a_chat_may_say_task_and_what_holds_no_list_is_noted(tiny: dllm.HostedModel) -> None:
    task = find_task("parallel_bench:reverse", TaskOptions(style="chat"))
    (problem,) = task.take(1)
    assert task.judgement(problem, f"Task: to reverse. {problem.response}").correct
    assert task.judgement(problem, "[nobody]").extracted
    assert task.judgement(problem, "nobody").extracted is False
    (plain,) = find_task("parallel_bench:reverse").take(1)
    assert not task.judgement(plain, f"Task: to reverse. {plain.response}").correct


def test_the_command_line_runs_and_resumes_it(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = ["eval", "--task", "parallel_bench", "--limit", "12", "-s", "threshold:0"]
    for _ in range(2):
        done = CliRunner().invoke(app, [*command, "--json", "--output", str(output)])
        assert done.exit_code == 0, done.output
        (row,) = json.loads(done.stdout)["rows"]
        assert set(row["scores"]) == {"strict", "loose", *FAMILIES}
        assert len(output.read_text().splitlines()) == 12
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(line["settings"]["task_options"] == Selection().describe() for line in lines)


# The ideal model: the limits of decoding in parallel, through the real loop.


def shuffles(num_names: int) -> Ideal:
    return Ideal.over(permutations(NAMES[:num_names]))


def replacements(num_names: int) -> Ideal:
    return Ideal.over(
        WaitingLine("replace_random", Line(NAMES[:num_names], NAMES[-1], 1), ()).outputs()
    )


def decode(ideal: Ideal, rows: int, scheduler: str, **given: Any) -> dllm.GenerationOutput:
    return dllm.generate(
        ideal.model,
        [ideal.prompt] * rows,
        scheduler=scheduler,
        max_new_tokens=ideal.num_tokens,
        block_length=ideal.num_tokens,
        statistics_dtype=torch.float64,
        **{"seed": 0, **given},
    )


class Ranked:
    """Noise under which row b draws the best word of its own ranking, unless that is impossible."""

    def __init__(self, rank: Tensor) -> None:
        self.rank = rank  # (B, N, V) from 0 to 10, the best highest

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        # The loop adds -log(-log(u)): steps of 4 outweigh any ratio of probabilities below 50.
        gumbel = 4 * self.rank.double() - 6
        return torch.exp(-torch.exp(-gumbel))

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        raise AssertionError("no order of columns is random here")


def drawn_in_every_way(ideal: Ideal, sizes: Sequence[int], atoms: Sequence[str]) -> float:
    """Returns the accuracy over all draws, each as likely as the others.

    The first step draws one of `atoms`, those of later steps the best that is left of any ranking.
    """
    ids = {word: token for token, word in enumerate(ideal.vocabulary)}
    first = [[10 * (ids[word] == token) for token in range(len(ids))] for word in atoms]
    later = []
    for order in permutations(range(len(atoms))):
        ranks = dict(zip((ids[word] for word in atoms), order, strict=True))
        later.append([ranks.get(token, 0) for token in range(len(ids))])
    columns = [first] * sizes[0] + [later] * (sum(sizes) - sizes[0] - (sizes[-1] == 1))
    columns += [later[:1]] * (sum(sizes) - len(columns))  # a last single token has no choice
    noise = Ranked(torch.tensor(list(product(*columns))))
    out = decode(
        ideal, len(noise.rank), f"fixed_quota:{len(sizes)}", temperature=1.0, noise=noise, seed=None
    )
    assert sizes_of(out) == list(sizes)
    return ideal.accuracy(out)


def sizes_of(out: dllm.GenerationOutput, row: int = 0) -> list[int]:
    return [len(commits) for commits in out.trace.commits(row)]


@pytest.mark.few(3)
@pytest.mark.parametrize("sizes", [(2,), (3,), (4,), (5,), (2, 1), (2, 2)])
def test_shuffles_are_as_often_right_as_all_draws_say(sizes: tuple[int, ...]) -> None:
    n = sum(sizes)
    expected = closed_forms.shuffle_sampled(sizes)
    assert drawn_in_every_way(shuffles(n), sizes, NAMES[:n]) == float(expected)
    if len(sizes) == 1:
        assert expected == Fraction(math.factorial(n), n**n)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_replacements_are_as_often_right_as_all_draws_say(n: int) -> None:
    ideal = replacements(n)
    shares = []
    for place in range(n):  # the old name at n - 1 of n atoms, and the new one, at each place
        own = {NAMES[place]: Fraction(n - 1, n), NAMES[-1]: Fraction(1, n)}
        found = dict(zip(ideal.vocabulary, ideal.marginals[place].tolist(), strict=True))
        assert {word: p for word, p in found.items() if p} == pytest.approx(
            {word: float(p) for word, p in own.items()}
        )
        shares.append(own)
    right = sum(
        math.prod(shares[place][word] for place, word in enumerate(output))
        for output in ideal.outputs
    )
    assert right == closed_forms.replace_sampled((n,)) == Fraction(n - 1, n) ** (n - 1)
    ids = {word: token for token, word in enumerate(ideal.vocabulary)}
    atoms = [[NAMES[-1], *[NAMES[place]] * (n - 1)] for place in range(n)]
    words = torch.tensor([[ids[word] for word in draw] for draw in product(*atoms)])
    noise = Ranked(10 * torch.nn.functional.one_hot(words, len(ids)))
    out = decode(ideal, len(words), "fixed_quota:1", temperature=1.0, noise=noise, seed=None)
    assert ideal.accuracy(out) == float(right)


def by_all_paths(ideal: Ideal, sizes: Sequence[int]) -> float:
    """Returns the accuracy of drawing `sizes` tokens at a time from conditionals, by recursion."""

    def go_on(outputs: list[tuple[str, ...]], start: int, left: Sequence[int]) -> float:
        if not left:
            return 1.0
        columns, total = range(start, start + left[0]), 0.0
        shares = [[output[column] for output in outputs] for column in columns]
        for words in {output[start : start + left[0]] for output in outputs}:
            chance = math.prod(s.count(w) / len(s) for s, w in zip(shares, words, strict=True))
            rest = [output for output in outputs if output[start : start + left[0]] == words]
            total += chance * go_on(rest, start + left[0], left[1:])
        return total

    return go_on(list(ideal.outputs), 0, sizes)


def compositions(n: int) -> list[tuple[int, ...]]:
    return [()] if n == 0 else [(k, *rest) for k in range(1, n + 1) for rest in compositions(n - k)]


@pytest.mark.few(1)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_closed_forms_agree_with_all_paths(n: int) -> None:
    for sizes in compositions(n):
        shuffle, replace = shuffles(n), replacements(n)
        assert float(closed_forms.shuffle_sampled(sizes)) == pytest.approx(
            by_all_paths(shuffle, sizes)
        )
        assert float(closed_forms.replace_sampled(sizes)) == pytest.approx(
            by_all_paths(replace, sizes)
        )
    pairs = (2,) * (n // 2) + (1,) * (n % 2)
    odd, even = math.prod(range(n - 1, 0, -2)), math.prod(range(n, 0, -2))
    assert closed_forms.shuffle_sampled(pairs) == Fraction(odd, even)


ROWS = 1500


@pytest.mark.few(4)
@pytest.mark.parametrize(("n", "steps"), [(3, 1), (3, 2), (4, 2), (5, 2), (5, 3), (6, 3)])
@pytest.mark.parametrize("family", ["shuffle", "replace"])
def test_seeded_draws_agree_with_the_closed_forms(family: str, n: int, steps: int) -> None:
    ideal = shuffles(n) if family == "shuffle" else replacements(n)
    # A random order: by confidence, which is that of the drawn token, the old names would go first.
    out = decode(ideal, ROWS, f"fixed_quota:{steps},order=random", temperature=1.0)
    form = getattr(closed_forms, f"{family}_sampled")
    expected = float(form(sizes_of(out)))
    assert 0 < expected < 1
    error = math.sqrt(expected * (1 - expected) / ROWS)
    assert abs(ideal.accuracy(out) - expected) < 4.5 * error


@pytest.mark.parametrize(
    ("n", "steps"), [(2, 1), (3, 2), (4, 2), (4, 1), (5, 3), (5, 2), (6, 2), (7, 3)]
)
def test_greedy_replacements_hang_on_the_last_step(n: int, steps: int) -> None:
    ideal = replacements(n)
    out = decode(ideal, 600, f"fixed_quota:{steps}", temperature=1e-3)  # which only breaks ties
    expected = float(closed_forms.replace_greedy(sizes_of(out)))
    assert ideal.accuracy(out) == pytest.approx(expected, abs=0.1 if expected == 0.5 else 0)


@pytest.mark.parametrize(("n", "steps"), [(2, 1), (4, 2), (5, 4), (5, 5)])
def test_greedy_shuffles_repeat_a_name_unless_one_at_a_time(n: int, steps: int) -> None:
    out = decode(shuffles(n), 1, f"fixed_quota:{steps}")
    assert shuffles(n).accuracy(out) == (steps == n)


@pytest.mark.parametrize("n", [2, 3, 5, 6])
def test_a_threshold_above_one_half_shuffles_exactly(n: int) -> None:
    ideal = shuffles(n)
    exact = decode(ideal, 300, "threshold:0.51", temperature=1.0)
    assert ideal.accuracy(exact) == 1
    assert sizes_of(exact) == [1] * n
    below = decode(ideal, 300, "threshold:0.49", temperature=1.0)
    assert sizes_of(below) == [*[1] * (n - 2), 2]  # the last two are drawn alone, each for itself
    assert ideal.accuracy(below) == pytest.approx(0.5, abs=0.13)
    assert closed_forms.shuffle_sampled([*[1] * (n - 2), 2]) == 0.5


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_threshold_above_an_old_names_share_replaces_exactly(n: int) -> None:
    ideal, share = replacements(n), (n - 1) / n
    for temperature in (0.0, 1.0):
        above = decode(ideal, 200, f"threshold:{share + 0.01}", temperature=temperature)
        assert ideal.accuracy(above) == 1
    below = decode(ideal, 200, f"threshold:{share - 0.01}", temperature=0.0)
    tied = n == 2  # old and new are alike; the lower token id wins at both places
    assert ideal.accuracy(below) == (ideal.answers(below)[0] in ideal.outputs if tied else 0)
    assert ideal.accuracy(decode(ideal, 200, f"threshold:{share - 0.01}", temperature=1.0)) < 0.95


@pytest.mark.parametrize("n", [2, 3, 6])
def test_total_correlation_in_bits(n: int) -> None:
    line = Line(NAMES[:n], NAMES[-1], 1)
    for family in ("copy", "reverse", "sort", "insert_index", "remove_index", "replace_index"):
        assert Ideal.over(WaitingLine(family, line, ()).outputs()).total_correlation == 0
    assert shuffles(n).total_correlation == pytest.approx(closed_forms.shuffle_bits(n))
    assert replacements(n).total_correlation == pytest.approx(closed_forms.replace_bits(n))
    by_hand = n * math.log2(n) - sum(math.log2(k) for k in range(1, n + 1))
    assert closed_forms.shuffle_bits(n) == pytest.approx(by_hand)
    assert closed_forms.replace_bits(n) == pytest.approx((n - 1) * math.log2(n / (n - 1)))
    assert closed_forms.replace_bits(1) == closed_forms.shuffle_bits(1) == 0
    assert closed_forms.replace_bits(10**6) == pytest.approx(math.log2(math.e), abs=1e-5)


@pytest.mark.parametrize("family", ["shuffle", "replace_random", "insert_random", "latin_square"])
def test_one_token_at_a_time_every_answer_is_as_likely(family: str) -> None:
    (instance,) = instances(family, 1, 4)
    ideal = Ideal.over(instance.outputs())
    out = decode(ideal, 600, "fixed_quota:order=random", temperature=1.0)
    assert ideal.accuracy(out) == 1
    answers = ideal.answers(out)
    assert all(instance.is_right(answer) for answer in answers)
    counts = [answers.count(output) for output in ideal.outputs]
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("family", ["copy", "reverse", "sort", "replace_index", "sudoku"])
def test_what_has_one_answer_is_right_all_at_once(family: str) -> None:
    (instance,) = instances(family, 1, 6)
    ideal = Ideal.over(instance.outputs())
    for scheduler in ("threshold", "fixed_quota:1", "entropy_bound"):
        out = decode(ideal, 3, scheduler)
        assert ideal.accuracy(out) == 1
        assert ideal.answers(out)[0] == instance.solution
        assert sizes_of(out) == [ideal.num_tokens]


def test_logits_are_the_conditionals_of_the_outputs() -> None:
    ideal = Ideal.over(WaitingLine("remove_random", Line(("A", "B", "C"), "Z", 1), ()).outputs())
    a, b, c = (ideal.vocabulary.index(word) for word in "ABC")
    canvas = torch.tensor([[2, 0, 0], [2, b, 0], [2, 0, c], [2, a, 0], [2, a, a]])
    found = ideal.model.module(canvas).softmax(-1)[:, 1:, 3:]
    expected = torch.tensor(
        [
            [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]],
            [[0, 1, 0], [0, 0, 1]],
            [[1 / 2, 1 / 2, 0], [0, 0, 1]],
            [[1, 0, 0], [0, 1 / 2, 1 / 2]],
            [[1, 0, 0], [0, 1 / 2, 1 / 2]],  # against every output: those that share one token
        ],
        dtype=torch.float64,
    )
    assert (a, b, c) == (3, 4, 5)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([], "at least one answer"),
        ([()], "at least one answer"),
        ([("a",), ("a", "b")], "of one length"),
        ([("a",), ("a",)], "outputs must differ"),
        (permutations(range(15)), "more than 50,000 outputs"),
    ],
)
def test_what_is_no_distribution_is_refused(outputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ideal.over(outputs)


def test_the_canvas_has_the_length_of_the_answers() -> None:
    ideal = shuffles(4)
    with pytest.raises(ValueError, match="max_new_tokens=4"):
        dllm.generate(ideal.model, [ideal.prompt], max_new_tokens=3, block_length=3)
    with pytest.raises(ValueError, match="limit of 5"):
        dllm.generate(ideal.model, [ideal.prompt], max_new_tokens=5, block_length=5)
    with pytest.raises(ValueError, match="cache='none'"):
        dllm.generate(ideal.model, [ideal.prompt], max_new_tokens=4, cache="dual")


def test_the_benchmark_measures_and_draws(tmp_path: Path) -> None:
    ideal = shuffles(3)
    points = [ideal_marginals.measure(ideal, f"fixed_quota:{steps}", 200) for steps in (3, 1)]
    assert [point.tokens_per_forward for point in points] == [1, 3]
    assert points[0].accuracy == 1 > points[1].accuracy
    assert "| `fixed_quota:1` |" in points[1].row("shuffle")
    file = tmp_path / "figure.png"
    ideal_marginals.draw({"shuffle": (ideal, {"fixed_quota": points})}, "title", file)
    assert file.read_bytes().startswith(b"\x89PNG")
