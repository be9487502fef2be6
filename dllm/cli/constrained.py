"""Options that say what answers must be: a pattern, a schema, a grammar or one of some texts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from dllm.cli.shown import say
from dllm.constraints.base import Constraint
from dllm.constraints.grammar import Grammar as ContextFree
from dllm.constraints.template import Template
from dllm.constraints.written import FILE, from_plain
from dllm.options import checked

Pattern = Annotated[
    str | None,
    Option(
        "--regex",
        help="Each answer is all that this pattern of Python's re matches.",
        show_default="none",
    ),
]
Schema = Annotated[
    Path | None,
    Option(
        "--json-schema",
        help="Each answer is JSON that the schema in this file accepts.",
        show_default="none",
    ),
]
Grammar = Annotated[
    Path | None,
    Option(
        "--grammar",
        help="Each answer is a text of the grammar in this file, written as for Lark.",
        show_default="none",
    ),
]
Method = Annotated[
    str | None,
    Option(
        "--grammar-method",
        help="The texts of --grammar nested to a bounded depth, with exact sets of tokens (depth), "
        "or all of them, asked about token by token: in any order (emptiness), or from left to "
        "right with blocks of one slot (prefix).",
        show_default="depth",
    ),
]
Choices = Annotated[
    list[str] | None,
    Option(
        "--choice",
        help="Each answer is this text, or another that is given so; repeatable.",
        show_default="none",
    ),
]
Laid = Annotated[
    Path | None,
    Option(
        "--template",
        help="JSON or YAML with a list of texts and holes, which is laid out behind each prompt.",
        show_default="none",
    ),
]
Joint = Annotated[
    str | None,
    Option(
        "--joint",
        help="Of commits that a constraint does not allow together: the surest (confidence), or "
        "those of the most probable text (map).",
        show_default="confidence",
    ),
]
Held = Annotated[
    bool,
    Option(
        "--constrained/--no-constrained",
        help="Hold each answer to what its problem says it must be, where problems do.",
    ),
]


def constraint_of(
    regex: str | None,
    json_schema: Path | None,
    grammar: Path | None,
    choice: list[str] | None,
    joint: str | None,
    method: str | None = None,
) -> dict[str, Any]:
    """Returns the settings that these options are, those not given left out.

    Raises ValueError, without any model, for two kinds at once and for what no text fulfils.
    """
    files = {"json_schema": json_schema, "grammar": grammar}
    named = {kind: {FILE: str(path)} for kind, path in files.items() if path is not None}
    texts = {"regex": regex, "choice": choice or None}
    given: dict[str, Any] = {kind: one for kind, one in texts.items() if one is not None} | named
    if len(given) > 1:
        first, second = (f"--{kind.replace('_', '-')}" for kind in list(given)[:2])
        raise ValueError(f"{first} and {second} both say what an answer is: keep one of them")
    if method is not None and grammar is None:
        raise ValueError(f"--grammar-method={method} is of --grammar, which is not given")
    found: dict[str, Any] = {}
    if joint is not None:
        found["joint"] = checked("--joint", joint, Literal["confidence", "map"])
    for kind, one in given.items():
        option = f"--{kind.replace('_', '-')}"
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            options = {} if method is None else {"method": method}
            constraint = from_plain({kind: one, **options}, option)
        for warning in warned:  # of Python's re, about what may be meant otherwise
            say(f"warning: {option}: {warning.message}")
        assert isinstance(constraint, Constraint)
        _check(constraint, option)
        found["constraint"] = constraint
    return found


def template_of(path: Path | None) -> dict[str, Any]:
    """Returns the setting that a file with a template is; raises ValueError, without any model."""
    if path is None:
        return {}
    template = from_plain({"template": {FILE: str(path)}}, "--template")
    assert isinstance(template, Template)
    for hole in template.holes:
        if hole.constraint is not None:
            _check(hole.constraint, "--template")
    return {"template": template}


def _check(constraint: Constraint, option: str) -> None:
    """Raises ValueError where no text fulfils it, or it is too large: before a model is loaded."""
    try:
        constraint.check() if isinstance(constraint, ContextFree) else constraint.byte_automaton()
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
