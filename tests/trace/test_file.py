"""Files of traces, `dllm trace` and the commands that write them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style

from dllm.cli.main import main
from dllm.cli.shown.replay import Cell, View, back, in_lines, print_steps
from dllm.cli.trace import _KEY, _NAMES, Screen
from dllm.trace import TraceRecord
from dllm.trace.file import check_free, read_held, write_records
from dllm.trace.page import as_script_data, assets, page
from tests.support.traces import BY_HAND, HOSTILE, hostile

QUESTION = "tom has 53 pens. tom loses 3. how many pens does tom have?"
RESULT = {"run": "r1", "prompt": "p", "text": "t"}

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["dllm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write_records(path, [BY_HAND, replace(BY_HAND, label="second")])
    return path


def lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_records_are_read_as_they_were_written(rows: Path) -> None:
    held = read_held(rows)
    assert [one.record for one in held] == [BY_HAND, replace(BY_HAND, label="second")]
    assert [one.number for one in held] == [1, 2]
    check_free(rows)
    assert len(read_held(rows)) == 2


def test_results_are_read_and_the_last_line_of_a_problem_counts(tmp_path: Path) -> None:
    trace = BY_HAND.to_json()
    path = lines(
        tmp_path / "results.jsonl",
        {**RESULT, "id": "a", "trace": replace(BY_HAND, label="old").to_json()},
        {**RESULT, "id": "b"},
        {**RESULT, "id": "a", "trace": trace},
        {**RESULT, "id": "a", "run": "r2", "trace": trace},
    )
    held = read_held(path)
    assert [(one.id, one.run) for one in held] == [("b", "r1"), ("a", "r1"), ("a", "r2")]
    assert held[1].record == BY_HAND
    with pytest.raises(ValueError, match=r"line 2 has no trace: .*--trace"):
        _ = held[0].record


def test_a_line_cut_off_by_a_kill_is_ignored(rows: Path) -> None:
    whole = rows.read_text(encoding="utf-8")
    rows.write_text(whole + whole[:100], encoding="utf-8")
    assert len(read_held(rows)) == 2
    for before, number in (("", 1), (whole, 3)):
        rows.write_text(before + whole[:100] + "\n" + whole, encoding="utf-8")
        with pytest.raises(ValueError, match=f"line {number} is no JSON"):
            read_held(rows)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"run": "r", "id": "a", "prompt": "", "text": ""}\n', "holds 1 row without a trace"),
        (b'{"texts": [], "sequences": [], "trace": {}}', "dllm generate --json"),
        (b"[1]\n", "neither a trace nor a result"),
        (b"3\n", "neither a trace nor a result"),
        (b"text", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\x89PNG\xff", "is no text file"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_files_are_refused_with_the_way_out(
    content: bytes, said: str, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    code, out, error = command("trace", path)
    assert (code, out) == (2, "")
    assert said in error
    assert "dllm eval ... --output FILE --trace" in error


def test_a_damaged_record_is_named_by_its_line(tmp_path: Path, command: Command) -> None:
    path = lines(tmp_path / "x", BY_HAND.to_json(), {**BY_HAND.to_json(), "tokens": "abc"})
    assert command("trace", path, "--row", 1)[0] == 0
    code, _, error = command("trace", path, "--row", 2)
    assert code == 2
    assert re.search(r"x line 2 has a damaged trace", error)


def test_a_folder_names_its_files(rows: Path, command: Command) -> None:
    assert (
        "is a folder: name one of its files (JSON lines here: rows.jsonl)"
        in command("trace", rows.parent)[2]
    )
    code, _, error = command("trace", rows.parent / "missing.jsonl")
    assert code == 2
    assert "missing.jsonl" in error


def test_traces_never_replace_something_else(tmp_path: Path, command: Command) -> None:
    results = lines(tmp_path / "results.jsonl", {**RESULT, "id": "a"})
    code, _, error = command("generate", QUESTION, "--trace", results)
    assert code == 2
    assert "holds no traces: choose another file" in error
    assert "r1" in results.read_text(encoding="utf-8")
    assert command("generate", QUESTION, "--trace", results / "x.jsonl")[0] == 2
    check_free(tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()


def test_generate_writes_what_trace_shows(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "rows.jsonl"
    asked = ("generate", QUESTION, "copy: tom, ann.", "-s", "rcr", "-n", 16, "-b", 16)
    assert command(*asked, "--trace", path)[0] == 0
    code, out, error = command("trace", path, "--json")
    frames = json.loads(out)["frames"]
    assert code == 0
    assert "row 1 of 2" in error
    assert len(frames) == 17
    assert "".join(frames[-1]["texts"]).startswith(QUESTION)
    listed = json.loads(command("trace", path, "--list", "--json")[1])["rows"]
    assert [row["label"] for row in listed] == [
        f"rcr / none: {QUESTION}",
        "rcr / none: copy: tom, ann.",
    ]
    assert [row["steps"] for row in listed] == [16, 16]


def test_eval_keeps_traces_under_the_same_name(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "results.jsonl"
    asked = ("eval", "-n", 32, "-b", 16, "--output", path, "-s", "threshold", "--limit")
    assert command(*asked, 2)[0] == 0
    assert "holds 2 rows without a trace" in command("trace", path)[2]
    assert command(*asked, 4, "--trace")[0] == 0
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [result["trace"] is None for result in results] == [True, True, False, False]
    assert len({result["run"] for result in results}) == 1
    for held, result in zip(read_held(path)[2:], results[2:], strict=True):
        *_, last = held.record.frames()
        slots = [last.tokens[c] for c in range(held.record.prompt_length, len(last.tokens))]
        words = [held.record.pieces[t] for t in slots if t not in held.record.special]
        assert "".join(words) == result["text"]
        assert held.record.label == f"{result['id']}: threshold / none"
        assert held.record.forwards == result["forwards"]
    assert command("trace", path, "--html", tmp_path / "x.html")[0] == 0
    assert len(data_of((tmp_path / "x.html").read_text(encoding="utf-8"))) == 2
    code, _, error = command("eval", "--limit", 2, "--trace")
    assert code == 2
    assert "name it with --output" in error


def test_steps_are_printed_without_a_terminal(rows: Path, command: Command) -> None:
    code, out, _ = command("trace", rows, "--row", 2)
    assert code == 0
    assert out.splitlines() == [
        "second · 4 steps in 4 forwards · 6 with variants or drafts · ended by: eos",
        "· open   [written in this step]   \u00d7 masked again   {edited}   ▏block begins",
        *("prompt", "p"),
        *("", "step 0 of 4 · 0 of 2 slots committed", "▏·c·"),
        *("", "step 1 of 4 · 1 committed · 1 of 2 slots committed", "▏[e]c·"),
        *("", "step 2 of 4 · 0 committed · 1 masked again · 0 of 2 slots committed"),
        "▏(\u00d7)c·",
        *("", "step 3 of 4 · 1 committed · 1 of 2 slots committed", "▏[f↵", "]c·"),
        "",
        "step 4 of 4 · 0 committed · 1 edited · 1 filled after the end · 1 of 2 slots committed",
        "▏{g⇥h}c<eos>",
    ]
    code, out, _ = command("trace", rows, "--row", 2, "--step", 1)
    assert out.splitlines()[-2:] == ["step 1 of 4 · 1 committed · 1 of 2 slots committed", "▏[e]c·"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--row", "0"], "row=0 must be between 1 and 2"),
        (["--row", "3"], "row=3 must be between 1 and 2; --list lists all"),
        (["--id", "a"], "no row has id='a': no row has an id"),
        (["--id", "a", "--row", "1"], "not both"),
        (["--step", "5"], "step=5 must be between 0 and 4"),
        (["--step", "-1"], "step=-1 must be"),
        (["--html", "rows.jsonl"], "must end in .html"),
        (["--html", "x.html", "--step", "1"], "without --step"),
        (["--colour", "stpe"], "did you mean 'step'?"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(
    options: list[str], said: str, rows: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    before = rows.read_bytes()
    code, out, error = command("trace", rows, *options)
    assert (code, out) == (2, "")
    assert said in error
    assert rows.read_bytes() == before


def test_ids_of_several_runs_and_near_misses(tmp_path: Path, command: Command) -> None:
    names = ("lists-test-0-1", "lists-test-0-2")
    results = [
        {**RESULT, "id": name, "run": run, "trace": BY_HAND.to_json()}
        for run in ("r1", "r2")
        for name in names
    ]
    path = lines(tmp_path / "results.jsonl", *results, {**RESULT, "id": "bare", "trace": None})
    assert "is in 2 runs: name one as --row 1, 3" in command("trace", path, "--id", names[0])[2]
    assert f"did you mean {names[1]!r} or" in command("trace", path, "--id", "lists-0-2")[2]
    assert "line 5 has no trace" in command("trace", path, "--id", "bare")[2]
    listed = command("trace", path, "--list")[1]
    assert listed.count("r2") == 2
    assert "no trace" in listed
    html = tmp_path / "new" / "both.html"
    assert command("trace", path, "--id", names[0], "--html", html)[0] == 0
    assert len(data_of(html.read_text(encoding="utf-8"))) == 2


def test_hostile_text_stays_out_of_the_terminal(tmp_path: Path, command: Command) -> None:
    record = {**hostile().to_json(), "label": HOSTILE, "pieces": {**BY_HAND.pieces, 3: HOSTILE}}
    path = lines(tmp_path / "x", {**RESULT, "id": HOSTILE, "run": HOSTILE, "trace": record})
    for options in ([], ["--list"], ["--id", "wrong"]):
        _, out, error = command("trace", path, *options)
        assert not set("\x1b\x00\u202e\u2028") & set(out + error)
        assert "alert" in out + error


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts.setdefault(self.tags[-1][0], []).append(data)


def data_of(text: str) -> Any:
    scripts = [d for d in Elements(text).texts["script"] if d.strip().startswith("[")]
    return json.loads(scripts[0])


def test_a_page_is_whole_and_says_what_may_run() -> None:
    text = page([BY_HAND, hostile()], HOSTILE)
    assert text.isascii() or "\x00" not in text
    found = Elements(text)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not [
        v for _, attrs in found.tags for k, v in attrs.items() if k == "src" or k[:2] == "on"
    ]
    policy = next(str(attrs["content"]) for _, attrs in found.tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    css, js = assets()
    for part in (css, js, found.texts["script"][-2].strip()):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy or part not in (css, js)
    assert [TraceRecord.from_json(one) for one in data_of(text)] == [BY_HAND, hostile()]
    with pytest.raises(ValueError, match="at least one record"):
        page([], "none")


@given(st.text())
def test_script_data_ends_no_script(text: str) -> None:
    data = as_script_data([text])
    assert json.loads(data) == [text]
    assert not set("<>&\u2028") & set(data)
    assert data.isascii()


@given(st.lists(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs")))), st.integers(2, 30))
def test_lines_fit_and_lose_nothing(parts: list[str], width: int) -> None:
    drawn = in_lines([Cell(n, text, Style()) for n, text in enumerate(parts)], width)
    assert "".join(line.plain for line in drawn.lines) == "".join(parts).replace("\n", "")
    assert all(cell_len(line.plain) <= width for line in drawn.lines)
    assert list(drawn.line_of) == list(range(len(parts)))
    assert sorted(drawn.line_of.values()) == list(drawn.line_of.values())


def test_a_token_that_fits_a_line_is_not_divided() -> None:
    words = [Cell(n, "abc", Style()) for n in range(4)]
    drawn = in_lines([*words, Cell(4, "x\n  y", Style()), Cell(5, "z" * 9, Style())], 8)
    assert [line.plain for line in drawn.lines] == ["abcabc", "abcabcx", "  y", "zzzzzzzz", "z"]
    assert drawn.line_of == {0: 0, 1: 0, 2: 1, 3: 1, 4: 1, 5: 3}
    assert [line.plain for line in in_lines(words, 6).lines] == ["abcabc", "abcabc"]


def test_colours_say_when_and_how_surely() -> None:
    assert back("step", 0.0, "truecolor") != back("step", 0.5, "truecolor")
    assert back("step", 0.4, "truecolor") != back("confidence", 0.4, "truecolor")
    assert {str(back("step", n / 9, "standard").bgcolor.name) for n in range(10)} == {  # type: ignore[union-attr]
        "cyan",
        "green",
        "yellow",
    }
    console = Console(record=True, force_terminal=True, color_system="truecolor", width=60)
    for colour in ("step", "confidence"):
        print_steps(console, View(BY_HAND, colour), range(5))
    shown = console.export_text(styles=True)
    assert "48;2;174;203;255" in shown  # step 1 of 4
    assert "48;2;255;232;150" in shown  # confidence 0.5
    assert "47m" in shown  # the confidence of a token that was taken back is not known


def step_of(screen: Screen | None) -> int:
    assert screen is not None
    return screen.step


def test_keys_move_the_replay() -> None:
    console = Console(width=40, height=12, force_terminal=True)
    screen = Screen(View(BY_HAND))
    walked = []
    for key in ("left", "right", "right", "home", "end", "right", "left", "x"):
        moved = screen.after(key, console)
        assert moved is not None
        screen = moved
        walked.append(screen.step)
    assert walked == [0, 1, 2, 0, 4, 4, 3, 3]
    assert screen.after("q", console) is None
    coloured = screen.after("c", console)
    assert coloured is not None
    assert coloured.view.colour == "confidence"


def test_space_plays_to_the_end_and_begins_anew() -> None:
    console = Console(width=40, height=12, force_terminal=True)
    screen: Screen | None = Screen(View(BY_HAND)).after("space", console)
    walked = []
    while screen is not None and screen.playing:
        screen = screen.after(None, console)
        walked.append(step_of(screen))
    assert walked == [1, 2, 3, 4]
    assert screen is not None
    again = screen.after("space", console)
    assert again is not None
    assert (again.step, again.playing) == (0, True)
    paused = again.after("space", console)
    assert paused is not None
    assert not paused.playing
    assert paused.after(None, console) == paused


def test_a_long_canvas_follows_what_is_written() -> None:
    slots = 400
    long = replace(
        BY_HAND,
        tokens=(9, *[5] * slots),
        given=(),
        commit_step=tuple(range(slots)),
        confidence=(0.5,) * slots,
        changes=None,
        num_steps=slots,
        pieces={**BY_HAND.pieces, 5: "word "},
    )
    console = Console(width=50, height=14, force_terminal=True, color_system=None)
    for step in (0, 1, 200, 400):
        screen = Screen(View(long), step)
        with console.capture() as captured:
            console.print(screen.drawn(console))
        shown = captured.get().splitlines()
        assert len(shown) <= 14
        assert any("lines" in line for line in shown)
        if step:
            assert any("word ·" in line or line.endswith("word ") for line in shown)
    up, down = (Screen(View(long), 200).after(key, console) for key in ("page up", "down"))
    assert up is not None
    assert down is not None
    assert up.top is not None
    assert down.top is not None
    assert up.top < down.top


def test_keys_have_names() -> None:
    given = "\x1b[C\x1bOD q\x1b[5~\x1b[1;5C\x1b"
    assert [_NAMES.get(key, key) for key in _KEY.findall(given)] == [
        *("right", "left", "space", "q", "page up", "\x1b[1;5C", "quit")
    ]
