"""Where the guides' files can be imported from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dllm.eval.tasks import TASKS
from dllm.models.families import FAMILIES
from tests.support.pages import FILES, blocks_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from, with the walk-throughs' files."""
    for page, name in FILES.items():
        code = next(block.code for block in blocks_of(page) if block.kind == "python")
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    rooms: tuple[dict[str, Any], ...] = (TASKS, FAMILIES)
    registered = [(registry, dict(registry)) for registry in rooms]
    yield tmp_path
    for registry, entries in registered:
        registry.clear()
        registry.update(entries)
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and tmp_path in Path(str(sys.modules[name].__file__)).parents
        ):
            del sys.modules[name]
