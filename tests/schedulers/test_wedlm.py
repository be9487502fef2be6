"""WeDLM's rule by hand: entropy, its penalty by distance, and the window that slides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.schedulers.wedlm import WeDLM
from dllm.state.candidates import Candidates
from tests.support.models import MODELS, golden_model, random_prompts
from tests.support.views import view_of

VOCABULARY = 11
TINY = 1e-9


def of_entropy(nats: list[float]) -> Candidates:
    """Returns candidates (1, W) whose distributions have about these entropies."""
    rows = []
    for wanted in nats:
        low, high = 0.0, 60.0
        for _ in range(200):  # one token above ten equal ones: entropy falls with its lead
            lead = (low + high) / 2
            chances = torch.tensor([lead] + [0.0] * (VOCABULARY - 1)).double().softmax(0)
            more = float(torch.special.entr(chances).sum()) > wanted
            low, high = (lead, high) if more else (low, lead)
        rows.append([low] + [0.0] * (VOCABULARY - 1))
    logits = torch.tensor([rows], dtype=torch.float64)
    return Candidates(logits, torch.zeros(1, len(nats)).long())


def decide(nats: list[float], masked: list[bool], **options: Any) -> tuple[list[int], int]:
    """Returns the committed columns and where the block ends."""
    view = view_of(torch.tensor([masked]))
    decision = WeDLM(**options).decide(of_entropy(nats), view)
    assert decision.block_end is not None
    return decision.commit[0].nonzero().flatten().tolist(), int(decision.block_end[0])


def test_distance_is_counted_from_the_first_mask() -> None:
    nats, masked = [0.1, 0.30, 0.30, 0.30, 0.30], [False, True, True, True, True]
    assert decide(nats, masked, threshold=0.35, penalty=0.02)[0] == [1, 2, 3]
    assert decide(nats, masked, threshold=0.35, penalty=0.03)[0] == [1, 2]
    assert decide(nats, masked, threshold=0.35, penalty=0)[0] == [1, 2, 3, 4]


def test_the_threshold_is_not_included_and_one_column_goes_in_any_case() -> None:
    nats, masked = [1.2, 0.8, 1.0], [True] * 3
    exact = float(of_entropy(nats).entropy[0, 1]) + 0.02
    assert decide(nats, masked, threshold=exact + TINY)[0] == [1]
    assert decide(nats, masked, threshold=exact)[0] == [1], "none passes: the smallest sum"
    assert decide([0.1, *nats[1:]], masked, threshold=exact)[0] == [0], "an equal sum is no pass"
    assert decide([0.1, *nats[1:]], masked, threshold=exact + TINY)[0] == [0, 1]
    assert decide(nats, masked, threshold=None)[0] == [1]
    assert decide(nats, masked, threshold=None, penalty=0.5)[0] == [0]
    assert decide([0.5] * 3, masked, threshold=None, penalty=0)[0] == [0], "ties: the first"
    assert decide([0.5] * 3, masked, threshold=9)[0] == [0, 1, 2]


@pytest.mark.parametrize(
    ("nats", "end"),
    [([0.1, 2, 2, 2], 1), ([2, 0.1, 2, 2], 4), ([0.1, 0.1, 2, 0.1], 2), ([0.1] * 4, 4)],
)
def test_the_window_moves_on_to_the_first_mask(nats: list[float], end: int) -> None:
    """Unless its first column is still a mask: then the block stays as it is."""
    assert decide(nats, [True] * 4)[1] == end


@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_any_model_is_decoded_as_plain_loops_say(data: st.DataObject) -> None:
    """On models with full attention too: the rule reads entropies, whoever gives them."""
    model = golden_model(data.draw(st.sampled_from(MODELS)))
    (prompt,) = random_prompts(1, seed=data.draw(st.integers(0, 99)))
    width = data.draw(st.sampled_from([1, 3, 8]))
    limit, penalty = data.draw(st.sampled_from([(0.4, 0.02), (1.5, 0.1), (None, 0.02)]))
    scheduler = {"name": "wedlm", "threshold": limit, "penalty": penalty}
    options: dict[str, Any] = {"max_new_tokens": 20, "block_length": width, "at_eos": "ignore"}
    options |= {"statistics_dtype": torch.float64}
    out = dllm.generate(model, [prompt], scheduler=scheduler, **options)
    expected, num_passes = by_loops(model, prompt, 20, width, limit, penalty)
    assert list(out.sequences[0]) == expected
    assert out.metrics.num_forwards == num_passes


@torch.inference_mode()
def by_loops(
    model: dllm.HostedModel,
    prompt: list[int],
    count: int,
    width: int,
    limit: float | None,
    penalty: float,
) -> tuple[list[int], int]:
    mask, shift = model.spec.mask_token_id, model.spec.logit_shift
    tokens, passes = [*prompt, *[mask] * count], 0
    while mask in tokens:
        logits: Tensor = model.network(torch.tensor([tokens]))[0].double()
        passes += 1
        first = tokens.index(mask)
        sums: dict[int, float] = {}
        best: dict[int, int] = {}
        for column in range(first, min(first + width, len(tokens))):
            if tokens[column] == mask:
                chances = logits[column - shift].softmax(-1)
                entropy = -sum(p * math.log(p) for p in chances.tolist() if p)
                sums[column] = entropy + penalty * (column - first)
                chances[mask] = -1
                best[column] = int(chances.argmax())
        sure = [c for c, it in sums.items() if limit is not None and it < limit]
        for column in sure or [min(sums, key=lambda c: (sums[c], c))]:
            tokens[column] = best[column]
    return tokens, passes
