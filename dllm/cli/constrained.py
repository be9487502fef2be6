"""Options that say what answers must be: a pattern, a schema, a grammar or one of some texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

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
