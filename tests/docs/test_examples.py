"""Examples of README and guides as a newcomer types them: they print what the text says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dllm import Settings, cache, schedulers
from dllm.eval.tasks import TASKS, find_task
from tests.support import ROOT
from tests.support.commands import Inside, runner
from tests.support.pages import DOCS, PAGES, blocks_of, module_of

TOM = "tom has 53 pens. tom loses 3. how many pens does tom have?"
RIGHT = {  # every prompt of an example, and what a reader takes for its answer
    TOM: "53-3=50; #### 50",
    "copy: tom, ann, sue.": "tom, ann, sue",
    "copy: joe, mia, eva.": "joe, mia, eva",
    "copy: ann, sam, zoe.": "ann, sam, zoe",
    "reverse: joe, eva, bob.": "bob, eva, joe",
    "write f(x): at least 7.": "def f(x):\n    x = max(x, 7)\n    return x",
    "write f(x): at least 7, divide by 6, at least 4.": (
        "def f(x):\n    x = max(x, 7)\n    x = x // 6\n    x = max(x, 4)\n    return x"
    ),
}
READ = [ROOT / "README.md", *sorted((DOCS / "start").glob("*.md"))]
GUIDES = [page for page in PAGES if page.parent.name == "guides"]
# Options with which an example is done in seconds; it prints the same with less to count.
SHORTER = {"--limit": "4", "--count": "12", "--epochs": "2", "--problems": "1"}
SHORTER |= {"--budget": "8000", "--confirm": "32", "--unseen": "32"}
ALSO = {
    "eval": ["--limit", "4"],
    "demo": ["--limit", "1"],
    "verify": ["--limit", "4"],
    "cache-error": ["--limit", "1"],
    "ablate": ["--limit", "1"],
    "tune": ["--budget", "8000", "--unseen", "32"],
    "train-filter": ["--count", "12", "--epochs", "2"],
    "train-context-filter": ["--count", "12", "--steps", "4"],
}
# What an example needs and nobody brings along: a checkpoint, a data set, results of other days.
ELSEWHERE = ("LLaDA", "llada ", "gsm8k", "HumanEval", "/path/to/", "slow.jsonl", "ablate mine.yaml")


def commands_of(page: Path) -> list[list[str]]:
    """Returns the commands of a page that can be run offline, made short."""
    lines = "\n".join(b.code for b in blocks_of(page) if b.kind != "python").splitlines()
    found = []
    for line in lines:
        if not line.startswith("dllm ") or any(name in line for name in ELSEWHERE):
            continue
        words = shlex.split(line, comments=True)[1:]
        for at, word in enumerate(words):
            words[at] = SHORTER.get(words[at - 1] if at else "", word)
        if words[0] == "tune":  # which needs some problems to tell settings apart
            words = [w if words[at - 1] != "--limit" else "32" for at, w in enumerate(words)]
        more = [] if "--list" in words else ALSO.get(words[0], [])
        given = set(words)
        for name, value in zip(more[::2], more[1::2], strict=True):
            words += [] if name in given else [name, value]
        if "--schedulers" in words:  # thirty rows, of a problem each
            words[words.index("--limit") + 1] = "1"
        found.append(words)
    return found


def run_all(page: Path, inside: Inside) -> None:
    prompts = [*RIGHT][:3]
    Path("prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    Path("mine.json").write_text(Settings(block_length=16).to_json(), encoding="utf-8")
    for block in blocks_of(page):
        if block.kind == "yaml" and block.code.startswith("# "):  # a file, its name above it
            name, _, content = block.code.removeprefix("# ").partition("\n")
            Path(name).write_text(content, encoding="utf-8")
    if page.name == "evaluation.md":  # which goes on with the results of the first pages
        Path("exam.csv").write_text(f"frage,loesung\n{TOM},50\n", encoding="utf-8")
        rows = ["-s", "fixed_quota", "-s", "threshold", "--limit", "4", "--output", "rows.jsonl"]
        assert inside("eval", *rows).returncode == 0
    for words in commands_of(page):
        done = inside(*words, stdin=f"{TOM}\n")
        assert done.returncode == 0, (words, done.stderr)
        assert "Traceback" not in done.stderr
        if words[0] == "generate":
            asked = [word for word in words[1:] if word in RIGHT or ": " in word or "?" in word]
            for prompt in asked:
                assert f"{RIGHT[prompt]}\n" in done.stdout, words
            assert asked or len(Path("answers.jsonl").read_text().splitlines()) == len(prompts)
        elif words[0] == "serve":
            assert "a page to chat at http://" in done.stderr
        elif words[0] == "chat":
            assert RIGHT[TOM] in done.stdout
        elif words[0] == "verify":
            assert re.search(r"saved: [1-9]\d* of \d+ forwards", done.stdout)
            assert "rows without any difference: 4 of 4" in done.stdout
        else:
            assert done.stdout.strip() or "written" in done.stderr or "--watch" in words, words


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [pytest.param(READ[0]), *(pytest.param(page, marks=pytest.mark.slow) for page in READ[1:])],
    ids=lambda page: page.name,
)
@pytest.mark.usefixtures("folder", "here")
def test_commands_of_the_first_pages_do_what_they_say(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(page, runner(monkeypatch, capsys))


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
@pytest.mark.usefixtures("here")
def test_commands_of_the_guides_do_what_they_say(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page.name == "add_a_task.md":  # its file, as if it were in eval/tasks
        monkeypatch.setitem(TASKS, "sorting", find_task("sorting:TASK"))
    monkeypatch.setattr("dllm.serve.run.Server.run", lambda *_, **__: None)  # which has no end
    for room in (schedulers, cache):  # where the files of the walk-throughs belong
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(folder)])
    run_all(page, runner(monkeypatch, capsys))


def test_commands_are_found() -> None:
    assert {words[0] for page in READ for words in commands_of(page)} >= {
        *("generate", "chat", "eval", "methods", "demo", "verify", "trace", "compare", "doctor"),
        *("cache-error", "ablate"),
    }


@pytest.mark.usefixtures("folder")
def test_answers_in_python_are_those_that_the_pages_say(tmp_path: Path) -> None:
    assert module_of(ROOT / "README.md", tmp_path).out.texts == (RIGHT[TOM],)
    first = module_of(DOCS / "start" / "first_steps.md", tmp_path)
    assert first.out.texts == (RIGHT[TOM],)
    assert first.again.texts == ("tom, ann, sue",)
    gap = "def f(x):\n    x = x + 12\n    return x"
    assert first.batch.texts == ("12+7=19; #### 19", "tom, ann, sue", gap)
    many = module_of(DOCS / "guides" / "batching.md", tmp_path)
    assert many.out.texts == tuple(RIGHT[prompt] for prompt in many.prompts)
    replayed = module_of(DOCS / "guides" / "trace.md", tmp_path)
    assert replayed.out.texts == ("tom, ann, sue", "joe, mia, eva")


def test_the_readme_says_how_the_command_is_called_after_make_demo() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before = text[: text.index("    dllm ")]
    assert "`.venv/bin/dllm`" in before
    assert "source .venv/bin/activate" in before
