"""Shows the comment behind a field as its description, for mkdocstrings.

Fields of dataclasses are described where they are declared: `tokens: Tensor  # (B, L) int64`.
"""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode


class FieldComments(Extension):
    """Gives attributes without a docstring the comment behind or above them."""

    def on_attribute_instance(
        self, *, node: ast.AST | ObjectNode, attr: Attribute, **kwargs: Any
    ) -> None:
        """Reads the comment off the source of a module."""
        if attr.docstring is not None or not isinstance(node, ast.AnnAssign | ast.Assign):
            return
        lines = ["", *attr.lines_collection[attr.filepath]]
        first, last = node.lineno, node.end_lineno or node.lineno
        comments = [lines[last].encode()[node.end_col_offset or 0 :].decode()]
        while lines[first - 1].lstrip().startswith("#"):
            first -= 1
            comments.insert(0, lines[first])
        text = " ".join(line.partition("#")[2].strip() for line in comments).strip()
        if text:
            attr.docstring = Docstring(text, parent=attr)
