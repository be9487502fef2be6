"""Laws over every hosted family, found in the catalogue: a new family is in them without a list."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

import dllm
from dllm.models.families import FAMILIES
from tests.support.laws import transfers_of
from tests.support.models import Poisoned
from tests.support.oracles import hosted

PROMPTS = [[3, 4, 5], [6] * 9, [7, 1, 30, 22, 9, 2], [11] * 14]
SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "scheduler": "threshold:0.3"}
ON_BLOCKS = " on blocks"  # behind the name of a family that may have been trained on them
NAMES = (
    *FAMILIES,
    *(name + ON_BLOCKS for name, family in FAMILIES.items() if family.block_optional),
)
EVERY = pytest.mark.parametrize("architecture", NAMES)


@cache
def model_of(architecture: str) -> dllm.HostedModel:
    """Returns a random model of a family, which no test may change."""
    with torch.inference_mode(False):
        name, on_blocks = architecture.removesuffix(ON_BLOCKS), architecture.endswith(ON_BLOCKS)
        given = {"attention": "block_causal:8"} if on_blocks else {}
        return hosted(name, Path(mkdtemp()), "float64", **given)


def settings(architecture: str, **given: Any) -> dict[str, Any]:
    """Returns settings with the cache that the attention allows; blocks are those of the model."""
    spec = model_of(architecture).spec
    exact = {"full": "dual", "masks_last": "streaming", "encoder_decoder": "encoder"}
    cache = exact.get(spec.attention, "block_causal")
    return {**SLOTS, "block_length": spec.block_length or 8, "cache": cache, **given}


@EVERY
def test_a_row_does_not_depend_on_its_batch(architecture: str) -> None:
    model, options = model_of(architecture), settings(architecture)
    together = dllm.generate(model, PROMPTS, **options).sequences
    for place, prompt in enumerate(PROMPTS):
        assert dllm.generate(model, [prompt], **options).sequences[0] == together[place]


@EVERY
def test_stale_slots_are_never_read(architecture: str) -> None:
    model, options = model_of(architecture), settings(architecture)
    poisoned: Any = Poisoned(model)
    expected = dllm.generate(model, PROMPTS, **options).sequences
    assert dllm.generate(poisoned, PROMPTS, **options).sequences == expected


@EVERY
def test_an_exact_cache_changes_no_token(architecture: str) -> None:
    model, options = model_of(architecture), settings(architecture)
    if options["cache"] == "dual":
        options["cache"] = "dual:refresh_every=1"
    expected = dllm.generate(model, PROMPTS, **{**options, "cache": "none"}).sequences
    assert dllm.generate(model, PROMPTS, **options).sequences == expected


@EVERY
def test_fixed_tokens_stay(architecture: str) -> None:
    model = model_of(architecture)
    out = dllm.generate(
        model, [PROMPTS[0]], **settings(architecture, fixed={5: 17, 9: 21}, at_eos="ignore")
    )
    answer = out.sequences[0][len(PROMPTS[0]) :]
    assert (answer[5], answer[9]) == (17, 21)
    assert model.spec.mask_token_id not in answer


@EVERY
def test_a_verifier_changes_no_token(architecture: str) -> None:
    model = model_of(architecture)
    options = settings(architecture, scheduler="fixed_quota")
    if model.spec.attention == "masks_last":
        with pytest.raises(ValueError, match="a commit changes what is seen, and verifier 'ssd'"):
            dllm.stream(model, [PROMPTS[1]], verifier="ssd", **options)
        return
    expected = dllm.generate(model, [PROMPTS[1]], **options)
    verified = dllm.generate(model, [PROMPTS[1]], verifier="ssd", **options)
    assert verified.sequences == expected.sequences


@EVERY
def test_one_host_transfer_a_step(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = settings(architecture, seed=0, temperature=0.5, at_eos="ignore")
    events = iter(dllm.stream(model_of(architecture), PROMPTS, **options))
    next(events)  # tables are built once
    waits = transfers_of(events, monkeypatch)
    assert len(waits) > 1
    assert set(waits) == {1}


@EVERY
def test_a_saved_model_decodes_the_same(architecture: str, tmp_path: Path) -> None:
    model, options = model_of(architecture), settings(architecture)
    dllm.save(model, tmp_path)
    again = dllm.load(tmp_path)
    assert again.spec == model.spec
    expected = dllm.generate(model, PROMPTS, **options).sequences
    assert dllm.generate(again, PROMPTS, **options).sequences == expected


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "architecture",
    [name for name in NAMES if name not in FAMILIES or FAMILIES[name].attention != "full"],
)
def test_tokens_are_edited_alike_with_and_without_a_cache(architecture: str) -> None:
    """The two modes of LLaDA2.1, on any network whose cache is exact while tokens are edited."""
    model = model_of(architecture)
    for mode in ("token_editing@speed", "token_editing@quality"):
        options = settings(architecture, scheduler=mode, at_eos="ignore")
        plain = dllm.generate(model, PROMPTS, **{**options, "cache": "none"})
        assert dllm.generate(model, PROMPTS, **options).sequences == plain.sequences
