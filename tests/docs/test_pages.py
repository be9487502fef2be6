"""What the documentation says: its code runs, its commands parse, its tables are the code's."""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from typer.testing import CliRunner

import dllm
from dllm import schedulers
from dllm.cli.commands import parser_of
from dllm.cli.main import app
from dllm.cli.methods import MARKER, escape, render, rewrite
from dllm.cli.shown.catalogue import Method, Option, comments_of, find_methods
from dllm.eval.run.describe import short
from dllm.models import wrap
from dllm.schedulers import Decision, Needs, Scheduler, Setup, View
from dllm.schedulers.threshold import Threshold
from dllm.schedulers.wrapper import Wrapper
from dllm.state.candidates import Candidates
from dllm.state.variants import Variants
from tests.support import ROOT
from tests.support.laws import SLOTS, check_fixed_tokens, check_host_transfers
from tests.support.models import golden_model, random_prompts
from tests.support.pages import ADDING, DOCS, NAME, PAGES, blocks_of, module_of, tables_of
from tests.support.views import check_contract, view_of

LIST = DOCS / "reference" / "schedulers.md"
EXAMPLES = ("Settled", "Ahead", "AtMost", "SecondThought")  # the further ones of the guide
QUESTIONS = [
    "tom has 53 pens. tom loses 3. how many pens does tom have?",
    "ann has 12 cups. ann buys 7 more. how many cups does ann have?",
    "sam has 9 cards.",
]


@pytest.fixture
def added(folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[Scheduler]:
    """The walk-through's scheduler, found by name as if its file were in schedulers/."""
    monkeypatch.setattr(schedulers, "__path__", [*schedulers.__path__, str(folder)])
    monkeypatch.delattr(schedulers, NAME, raising=False)
    return schedulers.registry.get(NAME)


@pytest.mark.few(2)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("folder")
def test_python_of_the_pages_runs(page: Path, tmp_path: Path) -> None:
    module_of(page, tmp_path)


def test_the_code_of_a_page_is_found() -> None:
    kinds = {page.name: [block.kind for block in blocks_of(page)] for page in PAGES}
    assert "python" in kinds["README.md"]
    assert kinds["add_a_scheduler.md"].count("python") == 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("added")
def test_commands_of_the_pages_parse(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # where the files are that commands name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in "\n".join(b.code for b in blocks_of(page) if b.kind != "python").splitlines():
        program, *words = (
            shlex.split(line, comments=True) if re.match("dllm |make ", line) else [""]
        )
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), line
        if program == "dllm":
            context = parser_of(words[0]).make_context(words[0], words[1:])
            given = context.params.get("scheduler") or []
            for text in [given] if isinstance(given, str) else given:
                schedulers.registry.create(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").partition(MARKER)[0]
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert all((page.parent / link).exists() for link in links)
    named = set(
        re.findall(r"`((?:dllm|schedulers|cache|constraints|eval|tests|docs)/[\w/.]+\.\w+)`", text)
    )
    missing = {name for name in named if not (ROOT / name).exists()}
    added = {"cache/lookback.py", "dllm/models/families/fable.py", "eval/tasks/sorting.py"}
    assert missing <= {f"schedulers/{NAME}.py", "schedulers/at_most.py", *added}


# The list of schedulers.


def test_the_list_of_schedulers_is_up_to_date() -> None:
    written = LIST.read_text(encoding="utf-8")
    part = render([method for method in find_methods() if method.kind == "scheduler"])
    assert written[written.index(MARKER) :] == part, (
        "docs/reference/schedulers.md is not what the code says: run `make docs` and look at it"
    )
    assert "`make docs`" in MARKER


def test_make_docs_writes_below_the_marker(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"by hand\n\n{MARKER}\n\nold\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["methods", "--markdown", "--into", str(page)])
    assert done.exit_code == 0, done.output
    printed = CliRunner().invoke(app, ["methods", "--markdown"]).output
    assert page.read_text(encoding="utf-8") == f"by hand\n\n{printed}"
    page.write_text("by hand", encoding="utf-8")
    with pytest.raises(ValueError, match="has no line"):
        rewrite(page, printed)


def test_every_scheduler_has_a_row_and_a_section_with_all_it_has() -> None:
    text = LIST.read_text(encoding="utf-8")
    table, *sections = text[text.index(MARKER) :].split("\n## ")[1:]
    assert [part.partition("\n")[0] for part in sections] == schedulers.registry.names()
    for name, part in zip(schedulers.registry.names(), sections, strict=True):
        scheduler: Any = schedulers.registry.get(name)
        assert table.count(f"(#{name})") == 1
        assert all(f"| `{field.name}` |" in part for field in fields(scheduler))
        assert all(f"`{name}@{preset}`" in part for preset in scheduler.presets)
        assert "Source: " in part
        assert ("Published: " in part) == bool(scheduler.published)


def test_tables_have_as_many_cells_in_every_row() -> None:
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(bars) == 1, f"{page.name}: {table[:80]}"


def test_text_is_escaped_outside_of_code() -> None:
    assert escape("a <b> `c <d>` e_f _g B * R *h*") == r"a &lt;b> `c <d>` e_f \_g B * R \*h\*"
    method = Method(
        "scheduler", "x", "A | b.", "arXiv 2505.22618; y", (Option("o", "int", "1", ""),)
    )
    text = render([method])
    assert r"| A \| b. |" in text
    assert "\n\nA | b.\n\n" in text
    assert "[arXiv 2505.22618](https://arxiv.org/abs/2505.22618); y." in text


def test_what_the_list_says_of_the_methods() -> None:
    said = {m.name: {trait.brief for trait in m.traits} for m in find_methods()}
    assert said["threshold"] == said["factor"] == set()
    assert {"revises", "state", "feeds columns twice"} <= said["wino"]
    assert said["hierarchical"] == {"revises with `remask_threshold`"}
    assert "may skip with `algorithm=origin` or `empty_steps=True`" in said["dream"]
    assert {"window of 2 blocks", "4 rows a forward"} <= said["lopa"]
    assert {"asks `inner`", "sees the row", "commits in any block"} <= said["prophet"]
    assert {"sees the row", "state of vocabulary size"} <= said["klass"]
    (factor,) = find_methods("factor")
    assert factor.options[0] == Option("factor", "float", "1.0", "")
    assert factor.options[1].type == "`judged`, `passes`, `waits`"
    assert factor.options[1].meaning.startswith("The last masked column is judged")
    (prophet,) = find_methods("prophet")
    assert prophet.options[0].default == "fixed_quota"
    assert prophet.presets["gsm8k"] == "high=8.0, mid=5.0, low=3.5"


def sure_of_everything(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns logits (B, L, 8) of a model that knows a single token."""
    return one_hot(torch.ones_like(tokens), 8) * 30.0


@pytest.mark.parametrize("name", schedulers.registry.names())
def test_who_commits_in_any_block_declares_it(name: str) -> None:
    scheduler = schedulers.registry.create(name)
    anywhere = False
    if scheduler.needs(8, 2).whole_row:
        model = wrap(sure_of_everything, mask_token_id=7, eos_token_id=6, vocab_size=8)
        options: dict[str, Any] = {"scheduler": scheduler, "max_new_tokens": 8, "block_length": 2}
        anywhere = dllm.generate(model, [[0]], **options).metrics.num_forwards < 8 // 2
    assert scheduler.anywhere == anywhere


@pytest.mark.few(1)
@pytest.mark.parametrize(("width", "name"), [(80, None), (80, "klass"), (120, "prophet")])
def test_methods_are_readable_in_a_terminal(width: int, name: str | None) -> None:
    arguments = ["methods", *([name] if name else [])]
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(app, arguments)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert not re.search("\N{HORIZONTAL ELLIPSIS}|MISSING|object at", done.stdout)
    words = " ".join(done.stdout.split())
    for method in find_methods(name):
        assert " ".join(method.rule.split()[:4]) in words
        assert any(line.split()[:1] == [method.name] for line in lines)
        assert all(option.name in words for option in method.options)


# The walk-through.


def test_the_added_scheduler_keeps_the_contract(added: type[Scheduler]) -> None:
    assert NAME in schedulers.registry.names()
    assert schedulers.registry.create(f"{NAME}:0.8").summary() == {"name": NAME, "margin": 0.8}
    check_contract(NAME)
    with pytest.raises(ValueError, match=r"margin=2 must be in \[0, 1\]"):
        added(margin=2)  # type: ignore[call-arg]
    (method,) = find_methods(NAME)
    assert method.options[0].meaning == "between the two largest probabilities, compared with >="


def test_the_added_scheduler_never_commits_neighbours_together(
    added: type[Scheduler], tiny: dllm.HostedModel
) -> None:
    options: dict[str, Any] = {"scheduler": added(), "max_new_tokens": 48, "block_length": 16}
    out = dllm.generate(tiny, QUESTIONS, **options)
    for row, question in enumerate(QUESTIONS):
        assert dllm.generate(tiny, [question], **options).sequences[0] == out.sequences[row]
        for commits in out.trace.commits(row):
            columns = sorted(column for column, _ in commits)
            assert all(after - column > 1 for column, after in pairwise(columns))
    assert out.metrics.tokens_per_forward > 1
    source = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(4, 8, 11, generator=source) * 4
        masked = torch.rand(4, 8, generator=source) < 0.7
        view = view_of(masked)
        commit = added().decide(Candidates(logits, logits.argmax(-1)), view).commit
        assert not (commit[:, 1:] & commit[:, :-1]).any()


@pytest.mark.usefixtures("added")
def test_the_added_scheduler_is_evaluated_by_name() -> None:
    arguments = ["--task", "arithmetic", "--scheduler", f"{NAME}:0.4", "--limit", "3", "--json"]
    done = CliRunner().invoke(app, ["eval", *arguments])
    assert done.exit_code == 0, done.output
    assert f'"scheduler": "{NAME}:0.4"' in done.stdout


def test_a_scheduler_from_elsewhere_is_called_by_its_file(folder: Path) -> None:
    scheduler = importlib.import_module(NAME).SpacedMargin()
    assert short(scheduler.summary(), schedulers.registry) == f"{NAME}:SpacedMargin:margin=0.5"


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [NAME, *EXAMPLES])
def test_examples_keep_the_laws(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(ADDING, folder)
    scheduler = module.SpacedMargin() if name == NAME else getattr(module, name)()
    if isinstance(scheduler, Wrapper):
        scheduler = replace(scheduler, inner=Threshold(0.3))
    model, prompts = golden_model("llada_gqa", "float32"), random_prompts(4)
    options: dict[str, Any] = {**SLOTS, "scheduler": scheduler, "cache": "dual"}
    together = dllm.generate(model, prompts, **options).sequences
    assert together == tuple(dllm.generate(model, [p], **options).sequences[0] for p in prompts)
    check_fixed_tokens(scheduler, "none")
    check_host_transfers(scheduler, "dual", monkeypatch)


@pytest.mark.parametrize(
    ("heading", "described"),
    [
        ("Candidates", Candidates),
        ("View", View),
        ("What a step returns", Decision),
        ("Variants of a row", Variants),
    ],
)
def test_the_tables_have_every_field(heading: str, described: type[Any]) -> None:
    table = tables_of(ADDING)[heading]
    computed = {
        name
        for name, value in vars(described).items()
        if isinstance(value, (property, cached_property)) and name[0] != "_" and name != "count"
    }
    known = {field.name for field in fields(described)} | computed
    assert known <= set(table)
    assert all(
        hasattr(described, name) for name in set(table) - {f.name for f in fields(described)}
    )
    comments = comments_of(described)
    for name, shape in table.items():
        if comments.get(name, "").startswith("("):
            assert comments[name].startswith(shape), name


@dataclass(frozen=True)
class Observer(Threshold):
    """A threshold that notes what it is given."""

    def select(self, candidates: Candidates, view: View) -> Decision:
        SEEN.append((candidates, view))
        return super().select(candidates, view)


SEEN: list[tuple[Candidates, View]] = []


def test_the_shapes_are_those_of_a_run(tiny: dllm.HostedModel) -> None:
    SEEN.clear()
    dllm.generate(tiny, QUESTIONS, scheduler=Observer(), max_new_tokens=32, block_length=16)
    candidates, view = SEEN[1]
    assert candidates.places is not None
    given_rows = candidates.places.shape[1]
    letters = {"B": 3, "W": 16, "w": given_rows, "V": tiny.spec.vocab_size}
    for heading, given in (("Candidates", candidates), ("View", view)):
        for name, said in tables_of(ADDING)[heading].items():
            log_prob = name == "log_prob"
            value = candidates.log_prob(view.tokens) if log_prob else getattr(given, name)
            if isinstance(value, Tensor):
                shape, _, kind = said.partition(") ")
                assert [letters[axis] for axis in re.findall(r"[A-Zw]", shape)] == list(value.shape)
                assert kind in str(value.dtype), name


def test_what_the_text_names_exists() -> None:
    text = ADDING.read_text(encoding="utf-8")
    setup = {field.name for field in fields(Setup)}
    assert setup <= set(re.findall(r"`(\w+)`", text))
    assert set(re.findall(r"setup\.(\w+)", text)) <= setup
    needs = set(re.findall(r"^- `(\w+)`: ", text, re.MULTILINE))
    assert {field.name for field in fields(Needs)} <= needs
    assert set(re.findall(r"Needs\((\w+)=", text)) <= needs
    for noun, described in (("view", View), ("candidates", Candidates), ("decision", Decision)):
        known = {field.name for field in fields(described)} | set(dir(described))
        assert set(re.findall(rf"\b{noun}\.(\w+)", text)) <= known
    hooks = re.findall(r"`(decide|select|score|start|needs|own_needs|appraise|\w+_\w+)`", text)
    hooks = [name for name in hooks if hasattr(Wrapper, name)]
    assert {"decide", "select", "score", "start", "needs", "own_needs", "appraise"} <= set(hooks)
    assert {"can_revise", "may_skip", "revision_limit"} <= set(hooks)
