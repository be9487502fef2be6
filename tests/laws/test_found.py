"""A method in a new file is found by the tests of all methods, without a list to extend."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dllm
from dllm.decoding.speculation import verifiers
from tests.support.laws import check_fixed_tokens, check_host_transfers
from tests.support.views import check_contract

LAWS = (
    "test_a_row_does_not_depend_on_its_batch",
    "test_logits_that_a_pass_did_not_compute_are_never_read",
    "test_fixed_tokens_stay_and_rows_end_full",
    "test_one_host_transfer_a_step",
)
PLANS = (
    "test_a_pass_writes_the_slots_that_it_names_and_no_others",
    "test_hidden_keys_change_nothing_and_visible_ones_do",
    "test_the_order_in_which_columns_are_fed_means_nothing",
    "test_logits_come_from_the_column_that_predicts_theirs",
)
COMBINED = (
    "test_a_part_of_what_is_not_refused_runs",
    "test_every_pair_that_is_not_refused_runs",
    "test_whatever_is_not_refused_runs",
)

Fresh = Callable[[str], ModuleType]


def add(package: Any, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes a method and puts it in reach of a registry, as if it lay there; returns its name."""
    name = f"newly_written_{package.registry.noun}"
    (folder / f"{name}.py").write_text(f"{line}\n\nclass New(Base):\n    pass\n", encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.delattr(package, name, raising=False)
    return name


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Fresh:
    """Imports a file of tests anew, as the next run of them would."""
    for name in [name for name in sys.modules if name.startswith("tests.")]:
        module = sys.modules[name]
        if hasattr(module, "SCHEDULERS") or ".test_" in name:
            parent, _, leaf = name.rpartition(".")
            monkeypatch.setattr(sys.modules[parent], leaf, module)  # so that it comes back
            monkeypatch.delitem(sys.modules, name)
    return importlib.import_module


def parameters(module: ModuleType, test: str) -> str:
    marks = getattr(module, test).pytestmark
    return str([list(mark.args[1]) for mark in marks if mark.name == "parametrize"])


def test_a_new_scheduler_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    line = "from dllm.schedulers.threshold import Threshold as Base"
    name = add(dllm.schedulers, line, tmp_path, monkeypatch)
    for test in (*LAWS, "test_a_row_of_a_shifted_model_does_not_either"):
        assert name in parameters(fresh("tests.laws.test_laws"), test)
    assert name in parameters(
        fresh("tests.decoding.test_batching"), "test_a_row_is_what_it_would_be_alone"
    )
    assert name in parameters(fresh("tests.schedulers.test_base"), "test_contract")
    assert name in fresh("tests.laws.test_combinations").all_schedulers()
    check_contract(name)
    check_fixed_tokens(name, "none")
    check_host_transfers(name, "dual", monkeypatch)


def test_a_new_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    name = add(dllm.cache, "from dllm.cache.dual import DualCache as Base", tmp_path, monkeypatch)
    laws = {
        "tests.laws.test_laws": (*LAWS, "test_stale_slots_are_never_read"),
        "tests.laws.test_caches": PLANS,
        "tests.laws.test_combinations": COMBINED,
        "tests.decoding.test_batching": ("test_a_row_is_what_it_would_be_alone",),
    }
    for file, tests in laws.items():
        for test in tests:
            assert name in parameters(fresh(file), test), (file, test)
    check_fixed_tokens("threshold:0.3", name)
    check_host_transfers("threshold:0.3", name, monkeypatch)


def test_a_new_verifier_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    line = "from dllm.decoding.speculation.verifiers.ssd import SelfSpeculative as Base"
    name = add(verifiers, line, tmp_path, monkeypatch)
    tests = fresh("tests.decoding.speculation.test_verifiers")
    assert name in parameters(tests, "test_nothing_changes_at_the_defaults")
    tests.test_nothing_changes_at_the_defaults(name)
