"""Set-up of all tests, and the embedded model."""

from __future__ import annotations

import os

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


@pytest.fixture(scope="session")
def tiny() -> dllm.HostedModel:
    return dllm.load("tiny")
