"""Defaults that help shows, here once more: to read them where they are used is to import torch.

`tests/cli/test_start.py` compares them with `dllm.settings`, the trainings and the report.
"""

from __future__ import annotations

SCHEDULER = "threshold"
CACHE = "none"
MAX_NEW_TOKENS = 128
TEMPERATURE = 0.0
BLOCK_LENGTH = 32  # or fewer for fewer slots, where the model has none of its own

ROWS = (
    50  # decoded at a time, at most: more gain little, and what is finished is written after each
)

EPOCHS, FILTER_RATE = 40_000, 3e-3  # of the Learn2PD filter, as its authors have them
ROUNDS, STEPS, CONTEXT_RATE = 2, 6000, 4e-3  # of the context filter

SHOWN = 20  # problems a task that an ablation's page shows
