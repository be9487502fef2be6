"""An ablation's report as one page: nothing is fetched, and no text of a model is executed."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from dllm.eval.report.ablation import Report
from dllm.eval.report.lines import Line, groups
from dllm.eval.report.problems import problems_of
from dllm.eval.report.strips import heat_map, histograms
from dllm.eval.report.svg import COLOURS, scatter
from dllm.eval.report.tables import Table, tables
from dllm.trace.page import as_script_data, assets
from dllm.trace.text import visible

KEPT = 20  # problems of a task whose texts and traces a page holds, unless told otherwise
_WORDS = {"run", "method", "note", "source", "inside its tolerance?", "model, task, new tokens"}
_HEAT = (
    "The mean step at which each column of the answer was committed, over the problems with a "
    "trace. Pale is early, dark is late; in a dark page the other way round. Each run has its own "
    "scale, which ends at the step on the right."
)
_FORWARDS = "Problems by their number of forwards; each run's tallest bar fills its row."


def page(report: Report, problems: int = KEPT) -> str:
    """Returns the page; it holds the texts and traces of at most `problems` problems a task.

    Its policy allows its own styles and scripts by their hashes and no request at all.
    """
    css, js = _asset("css"), _asset("js")
    trace_css, trace_js = assets()
    shown = problems_of(report.lines, problems)
    styles, scripts = f"{_hash(css)} {_hash(trace_css)}", f"{_hash(trace_js)} {_hash(js)}"
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
        answers=as_script_data(shown),
        trace_js=trace_js,
        js=js,
    )


def _sections(report: Report) -> Iterable[str]:
    (heading, table, legend), *others = tables(report)
    yield _section(heading, _table(table), legend)
    yield from _plots(report.lines)
    for heading, table, legend in others:
        yield _section(heading, _table(table), legend)
    measured = [line for line in report.lines if line.outcome.results]
    if measured:
        yield _section("Forwards", histograms(measured), _FORWARDS)
    heat = heat_map(measured)
    if heat:
        yield _section("Order of commits", heat, _HEAT)


def _plots(lines: Sequence[Line]) -> Iterable[str]:
    for group, members in groups(lines).items():
        colours = {m: n for n, m in enumerate(dict.fromkeys(line.method for line in members))}
        keys = "".join(
            f'<li class="c{number % COLOURS}"><span>{_text(method)}</span></li>'
            for method, number in colours.items()
        )
        plots = [
            scatter(members, "tokens_per_forward", colours),
            scatter(members, "tokens_per_second", colours),
        ]
        drawn = f'<div class="plots">{"".join(plots)}</div><ul class="keys">{keys}</ul>'
        model, task, slots = group
        legend = "Numbers are those of the table; the dashed line is the Pareto front."
        yield _section(f"{model}, {task}, {slots} new tokens", drawn, legend)


def _section(heading: str, content: str, legend: str) -> str:
    said = f'<p class="legend">{_text(legend)}</p>'
    return f"<section><h2>{_text(heading)}</h2>{content}{said}</section>"


def _table(table: Table) -> str:
    words = [head in _WORDS for head in table[0]]

    def row(cells: Sequence[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=words' if word else ''}>{_text(cell)}</{tag}>"
            for cell, word in zip(cells, words, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    head, body = row(table[0], "th"), "".join(row(cells, "td") for cells in table[1:])
    whole = f"<thead>{head}</thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="figures">{whole}</table></div>'


def _kept(report: Report, problems: int) -> str:
    most = max((len(line.outcome.trial.problems) for line in report.lines), default=0)
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


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
