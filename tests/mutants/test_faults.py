"""The planted faults are still those of the code as it stands; `make mutants` runs them."""

from __future__ import annotations

import pytest

from tests.mutants.faults import FAULTS, Fault, occurrences
from tests.support import ROOT


def test_the_text_that_a_fault_changes_occurs_once() -> None:
    assert len(FAULTS) >= 60
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    wrong = {fault.name: occurrences(fault) for fault in FAULTS if occurrences(fault) != 1}
    assert not wrong


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_leaves_code_that_can_be_read(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8").replace(fault.old, fault.new)
    compile(text, fault.file, "exec")
    for test in fault.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test
