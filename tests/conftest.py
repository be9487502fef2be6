"""Set-up of all tests, and the embedded model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

import dllm

# One thread: the models are so small that more only wait for each other.
torch.set_num_threads(1)

# Where no GPU is, Triton's kernels are interpreted; it must know before its first import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.register_assert_rewrite("tests.support")  # its checks say what differs, as tests do


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "also what the slow suite leaves out of products and of random cases"
    parser.addoption("--whole", action="store_true", help=text)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tests.support.marks import thin, without_whole  # once its asserts can be rewritten

    thin(items)
    if not config.getoption("whole"):
        config.hook.pytest_deselected(items=without_whole(items))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Has tests compile constraints themselves, and write none into the home folder."""
    dllm.constraints.cache_folder(tmp_path_factory.mktemp("dllm_cache"))


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Fails a test that leaves a logger of this project changed: later tests would hear it."""
    before = _changed_loggers()
    yield
    assert _changed_loggers() == before, "put levels and handlers back"


def _changed_loggers() -> dict[str, tuple[int, bool, int]]:
    """Returns level, whether it is off, and the handlers of each logger that is not as made."""
    found = {
        name: (log.level, log.disabled, len(log.handlers))
        for name, log in logging.root.manager.loggerDict.copy().items()  # threads add to it
        if name.partition(".")[0] == "dllm" and isinstance(log, logging.Logger)
    }
    return {name: state for name, state in found.items() if state != (logging.NOTSET, False, 0)}


@pytest.fixture(scope="session")
def tiny() -> dllm.HostedModel:
    return dllm.load("tiny")
