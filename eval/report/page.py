"""An ablation's report as one page: nothing is fetched, and no text of a model is executed."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dllm.eval.ablation.bench import Trial
from dllm.eval.ablation.lines import SPEEDS, Line, groups, title_of
from dllm.eval.report.ablation import Report
from dllm.eval.report.page_figures import COLOURS, heat_map, histograms, scatter
from dllm.eval.report.plot import draw_groups
from dllm.eval.report.tables import WORDS, Table, plain, write_csv, write_markdown
from dllm.eval.run.results import Result
from dllm.trace.page import as_script_data, assets, hash_of
from dllm.trace.text import visible

KEPT = 20  # problems of a task whose texts and traces a page holds, unless told otherwise
LONGEST = 20_000  # characters of a text; a model may fill a page
_HEAT = (
    "The mean step at which each column of the answer was committed, over the problems with a "
    "trace. Pale is early, dark is late; in a dark page the other way round. Each run has its own "
    "scale, which ends at the step on the right."
)
_PLOTS = "Numbers are those of the table; the dashed line is the Pareto front."
_FORWARDS = "Problems by their number of forwards; each run's tallest bar fills its row."


def write(folder: Path, report: Report, problems: int) -> list[Path]:
    """Writes Markdown, CSV, the page and plots; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    text, values, shown, plot = (folder / f"report.{end}" for end in ("md", "csv", "html", "png"))
    parts = [f"# {report.ablation.name}: {plain(report.ablation.about)}"]
    parts += [f"- {plain(note)}" for note in report.ablation.notes]
    for table in report.tables():
        parts += [f"## {table.title}", table.markdown(), table.legend]
    write_markdown(text, [*parts, *(f"Measured with {one}." for one in report.environments)])
    write_csv(values, report.records())
    shown.write_text(page(report, problems), encoding="utf-8")
    return [text, values, shown, *([plot] if draw_groups(plot, report.lines) else [])]


def page(report: Report, problems: int = KEPT) -> str:
    """Returns the page; it holds the texts and traces of at most `problems` problems a task.

    Its policy allows its own styles and scripts by their hashes and no request at all.
    """
    css, js = _asset("css"), _asset("js")
    trace_css, trace_js = assets()
    styles, scripts = f"{hash_of(css)} {hash_of(trace_css)}", f"{hash_of(trace_js)} {hash_of(js)}"
    return Template(_asset("html")).substitute(
        policy=f"default-src 'none'; style-src {styles}; script-src {scripts}",
        title=_text(report.ablation.name),
        about=_text(report.ablation.about),
        notes=_items(report.ablation.notes),
        sections="".join(_sections(report)),
        kept=_text(_kept(report, problems)),
        environments=_text("; ".join(f"measured with {one}" for one in report.environments)),
        css=css,
        trace_css=trace_css,
        answers=as_script_data(problems_of(report.lines, problems)),
        trace_js=trace_js,
        js=js,
    )


def _sections(report: Report) -> Iterable[str]:
    runs, *others = report.tables()
    yield _section(runs.title, _table(runs), runs.legend)
    yield from _plots(report.lines)
    for table in others:
        yield _section(table.title, _table(table), table.legend)
    measured = [line for line in report.lines if line.results]
    if measured:
        yield _section("Forwards", histograms(measured), _FORWARDS)
    heat = heat_map(measured)
    if heat:
        yield _section("Order of commits", heat, _HEAT)


def _plots(lines: Sequence[Line[Trial]]) -> Iterable[str]:
    for group, members in groups(lines).items():
        colours = {m: n for n, m in enumerate(dict.fromkeys(line.curve for line in members))}
        keys = "".join(
            f'<li class="c{number % COLOURS}"><span>{_text(method)}</span></li>'
            for method, number in colours.items()
        )
        plots = "".join(scatter(members, speed, colours) for speed in SPEEDS)
        drawn = f'<div class="plots">{plots}</div><ul class="keys">{keys}</ul>'
        yield _section(title_of(group), drawn, _PLOTS)


def _section(heading: str, content: str, legend: str) -> str:
    below = f'<p class="legend">{_text(legend)}</p>'
    return f"<section><h2>{_text(heading)}</h2>{content}{below}</section>"


def _table(table: Table) -> str:
    words = [head in WORDS for head in table.heads]

    def row(cells: Sequence[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=words' if word else ''}>{_text(cell)}</{tag}>"
            for cell, word in zip(cells, words, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    head, body = row(table.heads, "th"), "".join(row(cells, "td") for cells in table.rows)
    whole = f"<thead>{head}</thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="figures">{whole}</table></div>'


def _kept(report: Report, problems: int) -> str:
    most = max((len(line.candidate.problems) for line in report.lines), default=0)
    if problems >= most:
        return "All problems, those on which the runs disagree most first."
    return (
        f"{problems} of up to {most:,} problems a task, those on which the runs disagree most "
        "first: not a fair sample. All texts and traces are in runs/ beside this page."
    )


def _items(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _text(text: str) -> str:
    return html.escape(visible(text))


def _asset(kind: str) -> str:
    return (files("dllm.eval.report") / f"page.{kind}").read_text(encoding="utf-8")


# The problems whose answers a page shows one by one, as JSON-ready values.


def problems_of(lines: Sequence[Line[Trial]], most: int) -> list[dict[str, Any]]:
    """Returns at most `most` problems of each task with the answer of each run.

    Those on which the runs disagree most come first, then the others in the task's order.
    """
    tasks: dict[str, list[Line[Trial]]] = {}
    for line in lines:
        tasks.setdefault(line.candidate.subject[1], []).append(line)
    return [shown for task, members in tasks.items() for shown in _of_task(task, members, most)]


def _of_task(task: str, lines: Sequence[Line[Trial]], most: int) -> list[dict[str, Any]]:
    answers: dict[str, list[tuple[Line[Trial], Result]]] = {}
    for line in lines:
        for result in line.results:
            answers.setdefault(result.id, []).append((line, result))
    answered = [problem for problem in lines[0].candidate.problems if problem.id in answers]
    marks = {id_: [result.correct for _, result in pairs] for id_, pairs in answers.items()}
    # Falls with the number of runs that disagree with the others.
    answered.sort(key=lambda one: -min(marks[one.id].count(True), marks[one.id].count(False)))
    return [
        {
            "task": task,
            "id": problem.id,
            "prompt": _cut(problem.prompt),
            "expected": _cut(problem.answer),
            "answers": [_answer(line, result) for line, result in answers[problem.id]],
        }
        for problem in answered[:most]
    ]


def _answer(line: Line[Trial], result: Result) -> dict[str, Any]:
    return {
        "number": line.number,
        "run": line.name,
        "text": _cut(result.text),
        "correct": result.correct,
        "forwards": result.forwards,
        "tokens": result.valid_tokens,
        "finish": result.finish_reason,
        "trace": result.trace,
    }


def _cut(text: str) -> str:
    more = len(text) - LONGEST
    return text if more <= 0 else f"{text[:LONGEST]}\n[{more:,} more characters]"
