"""Conventions of the tests themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, TESTS


def modules_of(file: Path) -> Iterator[str]:
    """Yields all that a file may import, by its full name, a function's imports included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", sorted(TESTS.rglob("*.py")), ids=lambda file: file.stem)
def test_what_tests_share_is_in_support(file: Path) -> None:
    """No test imports from a file of tests, which would bind the two together."""
    parts = [part for name in modules_of(file) for part in name.split(".")[1:]]
    parts = [part for part in parts if part == "conftest" or part.startswith("test_")]
    assert not parts


def test_no_test_lies_outside_the_folders_that_mirror_the_tree() -> None:
    flat = {f"test_{file.stem}" for file in (ROOT / "dllm").glob("*.py")}
    assert {file.stem for file in TESTS.glob("test_*.py")} <= flat
