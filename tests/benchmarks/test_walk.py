"""A step is read in few files, one after the other."""

from __future__ import annotations

import dllm
from benchmarks.walk import walk


def test_a_step_walks_through_few_files(tiny: dllm.HostedModel) -> None:
    found = walk(tiny)
    assert len(found.files) <= 15, found.files
    assert found.num_changes <= 58
    assert "schedulers/threshold.py" in found.files
    assert "cache/dual.py" in found.files
