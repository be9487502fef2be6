"""A page that replays rows in a browser: one file, nothing fetched, no text of it executed."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from dllm.trace.record import TraceRecord
from dllm.trace.text import visible

START = 'mountTraces(document.getElementById("trace"), "records");'


def assets() -> tuple[str, str]:
    """Returns (css, js) of the viewer, for pages of one's own.

    The script defines `mountTrace(element, record)`, whose record is what `TraceRecord.to_json`
    gives, and `mountTraces(element, id)`, which reads a list of them from the text of an element.
    """
    return _asset("css"), _asset("js")


def as_script_data(value: object) -> str:
    """Returns JSON that ends no `<script>` element, whatever text it holds; ASCII alone."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page(records: Sequence[TraceRecord], title: str) -> str:
    """Returns an HTML page that replays the records; raises ValueError if there are none.

    Its policy allows the viewer's own style and script by their hashes and no request at all.
    """
    if not records:
        raise ValueError("a page needs at least one record")
    css, js = assets()
    scripts = f"script-src {_hash(js)} {_hash(START)}"
    policy = f"default-src 'none'; img-src data:; style-src {_hash(css)}; {scripts}"
    return Template(_asset("html")).substitute(
        policy=policy,
        title=html.escape(visible(title)),
        css=css,
        js=js,
        start=START,
        records=as_script_data([record.to_json() for record in records]),
    )


def _asset(kind: str) -> str:
    return (files("dllm.trace") / f"page.{kind}").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
