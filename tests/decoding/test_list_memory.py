"""A list of many prompts takes hardly more memory than its answers do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

A_PROMPT = 384  # bytes beside its answer, of 60 columns

MEASURED = """
import ctypes, gc, random, sys
from pathlib import Path
import torch, dllm
from tests.support.models import golden_model

torch.set_num_threads(1)

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

def now():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return held("VmRSS")

model, draw, count = golden_model("llada_gqa", "float32"), random.Random(0), int(sys.argv[1])
prompts = [[5 + draw.randrange(60)] * draw.randrange(40, 53) for _ in range(count)]
options = dict(max_new_tokens=8, block_length=8, scheduler="threshold:0.05", cache=sys.argv[2])
options["batch_size"] = int(sys.argv[3]) or None
dllm.generate(model, prompts[:100], **options)
before = now()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
out = dllm.generate(model, prompts, **options)
peak = held("VmHWM")
print(peak - now(), len(out.sequences))
"""


def beyond(count: int, cache: str, rows: int = 0) -> int:
    """Returns the bytes of the peak that the answers to so many prompts do not hold afterwards."""
    command = [sys.executable, "-c", MEASURED, str(count), cache, str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found, answers = map(int, done.stdout.split())
    assert answers == count
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("cache", "rows"), [("none", 0), ("prefix", 8)])
def test_ten_thousand_prompts_have_the_peak_of_a_thousand(cache: str, rows: int) -> None:
    """By default, and where a refresh feeds so few rows that its own peak hides no prompts."""
    few, many = beyond(1000, cache, rows), beyond(10_000, cache, rows)
    assert many - few < 9000 * A_PROMPT
