"""How many kernels a layer, the rest of a pass and a step's loop ask a GPU for; writes the page.

`python -m tests.models.test_kernel_counts` writes the table of docs/notes/kernels.md.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch

if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

pytest.importorskip("triton")

from tests.support import ROOT
from tests.support.kernel_counts import counts
from tests.support.models import MODELS, family_model, golden_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter's numpy
    pytest.mark.skipif(torch.cuda.is_available(), reason="counted on a CPU"),
]
PAGE = ROOT / "docs" / "notes" / "kernels.md"
MARKER = "<!-- written by python -m tests.models.test_kernel_counts -->"
FORCED = "block_causal:first_token=force"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full attention, grouped queries, ragged rows": ("llada_gqa", {"cache": "dual"}),
    "the same at a temperature": ("llada_gqa", {"cache": "dual", "temperature": 0.7}),
    "full attention, a row": ("llada_mha", {"cache": "dual", "prompts": 1}),
    "block-causal, normed queries and keys": ("sdar", {"cache": "block_causal"}),
    "block-causal, first tokens forced": ("fast_dllm_v2", {"cache": FORCED}),
}
FURTHER = {"an encoder and a decoder": ("e2d2", {"cache": "encoder"})}  # which has no kernels
MOST = {"layer": 14, "beside the layers": 25, "loop": 60}  # what was aimed at


def measured(case: str, by_kernels: bool) -> dict[str, int]:
    name, options = {**CASES, **FURTHER}[case]
    model = golden_model(name, "float32") if name in MODELS else family_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter's numpy
        return counts(model, by_kernels, **options)


def table() -> str:
    """Returns the Markdown of what was counted."""
    rows = ["| a step of | way | a layer | beside the layers | the loop |"]
    rows.append("| --- | --- | --: | --: | --: |")
    for case in CASES:
        for way, by_kernels in (("operations", False), ("kernels", True)):
            found = measured(case, by_kernels)
            cells = " | ".join(str(number) for number in found.values())
            rows.append(f"| {case} | {way} | {cells} |")
    return "\n".join(rows)


def test_a_layer_asks_for_few_kernels() -> None:
    found = measured("full attention, grouped queries, ragged rows", by_kernels=True)
    assert all(0 < found[part] <= most for part, most in MOST.items())


@pytest.mark.parametrize("case", [*CASES, *FURTHER])
def test_the_loop_asks_for_few_kernels(case: str) -> None:
    """The same in both ways, of which this one is the quicker."""
    assert 0 < measured(case, by_kernels=False)["loop"] <= MOST["loop"]


@pytest.mark.slow
@pytest.mark.timeout(600)  # interpreted twice for each case
def test_the_page_says_what_was_counted() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(MARKER)[2].strip() == table().strip()


if __name__ == "__main__":
    torch.set_num_threads(1)
    written = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    PAGE.write_text(f"{written}{MARKER}\n\n{table()}\n", encoding="utf-8")
