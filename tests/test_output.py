"""An output as it is looked at: in a prompt, in a notebook, as tables of pandas."""

from __future__ import annotations

import html.parser
import re
import sys
from dataclasses import replace

import pytest

import dllm

TOM = "tom has 53 pens. tom loses 3. how many pens does tom have?"
MANY = [
    "copy: tom, ann.",
    TOM,
    "copy: joe, mia.",
    "copy: ann, sam, zoe.",
    "reverse: joe, eva, bob.",
]


@pytest.fixture(scope="module")
def out(tiny: dllm.HostedModel) -> dllm.GenerationOutput:
    return dllm.generate(tiny, MANY * 10, max_new_tokens=32)


def test_reprs_are_a_few_lines(out: dllm.GenerationOutput) -> None:
    said = repr(out)
    assert len(said) < 1000
    assert "'53-3=50; #### 50'" in said
    assert "... and 46 rows more" in said
    for part in (out.metrics, out.trace):
        assert len(repr(part)) < 250
        assert "\n" not in repr(part)
    assert f"50 rows, {out.metrics.valid_tokens} tokens" in repr(out.metrics)
    assert repr(dllm.Settings()) == "Settings()"
    assert repr(dllm.Settings(temperature=0.5)) == "Settings(temperature=0.5)"


def test_an_answer_in_a_repr_is_short_and_obeys_nothing(out: dllm.GenerationOutput) -> None:
    hostile = replace(out, texts=("\x1b[2J" + "x" * 10**6, *(out.texts or ())[1:]))
    assert len(repr(hostile)) < 1100
    assert "\x1b" not in repr(hostile)
    bare = replace(out, texts=None)
    assert len(repr(bare)) < 1100


class Tags(html.parser.HTMLParser):
    """The tags of a page, and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Tags:
    found = Tags()
    found.feed(text)
    return found


def test_a_notebook_shows_a_table(out: dllm.GenerationOutput) -> None:
    shown = parsed(out._repr_html_())
    assert shown.tags.count("tr") == 51
    assert TOM in shown.text
    assert "53-3=50; #### 50" in shown.text
    assert shown.tags.count("details") == 50
    assert re.search(rf"\d steps{'·' * 32}", shown.text)
    assert shown.tags.count("b") > 50


def test_a_large_output_makes_no_large_page(tiny: dllm.HostedModel) -> None:
    long = dllm.generate(tiny, TOM, max_new_tokens=128, scheduler="fixed_quota")
    assert "details" not in parsed(long._repr_html_()).tags
    many = dllm.generate(tiny, ["copy: joe, mia."] * 60, max_new_tokens=16)
    shown = parsed(many._repr_html_())
    assert shown.tags.count("tr") == 51
    assert "and 10 rows more" in shown.text


def test_a_page_obeys_nothing_that_an_answer_says(out: dllm.GenerationOutput) -> None:
    script = "<script>alert(1)</script>&<img src=x onerror=y>"
    shown = parsed(replace(out, texts=(script,) * 50)._repr_html_())
    assert not {"script", "img"} & set(shown.tags)
    assert script in shown.text


def test_figures_as_pandas(out: dllm.GenerationOutput) -> None:
    pytest.importorskip("pandas")
    rows = out.metrics.to_pandas()
    assert len(rows) == 50
    assert rows.valid_tokens.sum() == out.metrics.valid_tokens
    writes = out.trace.to_pandas()
    assert list(writes.columns) == ["row", "step", "column", "token", "confidence"]
    assert len(writes) == out.metrics.raw_tokens
    first = writes[writes.row == 1]
    commits = [pair for step in out.trace.commits(1) for pair in step]
    assert sorted(zip(first.column, first.token, strict=True)) == sorted(commits)
    assert first.confidence.between(0, 1).all()


def test_writes_that_were_revised_have_no_confidence(tiny: dllm.HostedModel) -> None:
    pytest.importorskip("pandas")
    revised = dllm.generate(
        tiny, MANY, scheduler="wino:0.2,threshold_back=0.999", max_new_tokens=32
    )
    writes = revised.trace.to_pandas()
    assert len(writes) == sum(len(row) for row in revised.trace.changes or ())
    last = writes.groupby(["row", "column"]).tail(1)
    assert last.confidence.notna().mean() > 0.9
    assert writes.drop(last.index).confidence.isna().all()


def test_without_pandas_it_says_how_to_get_it(
    out: dllm.GenerationOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for part in (out.metrics, out.trace):
        with pytest.raises(ImportError, match=r"pip install 'dllm\[pandas\]'"):
            part.to_pandas()
