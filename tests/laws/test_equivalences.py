"""Parameters at their ends: where two methods must be the same, they are, commit by commit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm
from tests.support.models import MODELS, golden_model, random_prompts

SLOTS = 16
EXAMPLES = 2  # other ones each time; each runs a dozen methods on a model

ONE_BY_ONE = [
    "threshold:1.0",
    "factor:0.000001",
    f"fixed_quota:steps={SLOTS}",
    "entropy_bound:0,order=confidence",
    "localleap:1.0,relaxed_threshold=1.0",
    "hierarchical:null,low_threshold=1",
    "credit:1.0,weight=0",
    "klass:0,kl_threshold=0",
    "multi_block:1.0,blocks=1",
    "ete:1.0,alternatives=0,blocks=1",
    "lopa:1.0,branches=1,blocks=1",
    "prophet:high=1e9,mid=1e9,low=1e9",
]
AT_ONCE = [
    "threshold:0",
    "factor:1000",
    "entropy_bound:1e9",
    "localleap:0",
    "hierarchical:0",
    "credit:0",
    "multi_block:0,blocks=1",
    "ete:0,blocks=1",
]


def run(name: str, scheduler: Any, data: dict[str, Any]) -> Any:
    out = dllm.generate(
        golden_model(name),
        random_prompts(data["rows"], seed=data["seed"]),
        scheduler=scheduler,
        max_new_tokens=SLOTS,
        block_length=data["block_length"],
        cache=data["cache"],
        at_eos="ignore",
    )
    return out.sequences, out.trace.commit_step.tolist()


def on(model: str) -> list[Any]:
    """Returns all models, of which one is in the fast suite."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name != model)) for name in MODELS]


runs = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 3),
        "seed": st.integers(0, 999),
        "block_length": st.sampled_from([1, 4, 8, 16]),
        "cache": st.sampled_from(["none", "prefix", "dual"]),
    }
)


@pytest.mark.parametrize("name", on("llada_gqa"))
@settings(deadline=None, max_examples=EXAMPLES)
@given(data=runs)
def test_one_token_a_step(name: str, data: dict[str, Any]) -> None:
    expected = run(name, "fixed_quota", data)
    for scheduler in ONE_BY_ONE:
        assert run(name, scheduler, data) == expected, scheduler


@pytest.mark.parametrize("name", on("dream_gqa"))
@settings(deadline=None, max_examples=EXAMPLES)
@given(data=runs)
def test_one_forward_a_block(name: str, data: dict[str, Any]) -> None:
    expected = run(name, f"fixed_quota:steps={SLOTS // data['block_length']}", data)
    for scheduler in AT_ONCE:
        assert run(name, scheduler, data) == expected, scheduler


@pytest.mark.parametrize("name", on("llada_mha"))
@settings(deadline=None, max_examples=EXAMPLES)
@given(data=runs, threshold=st.sampled_from([0.2, 0.35, 0.5, 0.8]))
def test_what_reduces_to_the_threshold(name: str, data: dict[str, Any], threshold: float) -> None:
    expected = run(name, f"threshold:{threshold}", data)
    equal = [
        f"localleap:{threshold},radius=0",
        f"localleap:{threshold},relaxed_threshold={threshold}",
        f"credit:{threshold},weight=0",
        f"certainty_density:{threshold},sigma=1e-3" if data["block_length"] == 1 else "",
        f"prophet:inner=threshold:{threshold},high=1e9,mid=1e9,low=1e9",
    ]
    if name != "dream_gqa":
        equal.append(f"wino:{threshold},threshold_back=0,share=1,least=99,most=99")
    for scheduler in filter(None, equal):
        assert run(name, scheduler, data) == expected, scheduler


@pytest.mark.few(1)
@pytest.mark.parametrize("name", MODELS)
def test_prophet_that_fires_at_once_needs_one_forward(name: str) -> None:
    data = {"rows": 3, "seed": 1, "block_length": 4, "cache": "none"}
    settled = run(name, "prophet:high=-1,mid=-1,low=-1", data)
    at_once = run(name, "threshold:0", {**data, "block_length": SLOTS})
    assert settled == at_once
    never = run(name, "prophet:high=-1,region=fixed,answer_start=99", data)
    assert never == run(name, "fixed_quota", data)
