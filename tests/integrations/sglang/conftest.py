"""The engine's own algorithm code, where `make sglang` brought its wheel."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from dllm.integrations.sglang import register
from tests.support.sglang import installed, wheel


@pytest.fixture(scope="module")
def sglang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The package `sglang.srt.dllm.algorithm` with its own algorithms, and ours registered."""
    archive = wheel()
    if archive is None:
        pytest.skip("no wheel of SGLang in build/sglang: `make sglang` brings it")
    with installed(archive, tmp_path_factory.mktemp("sglang")):
        register()
        yield import_module("sglang.srt.dllm.algorithm")
