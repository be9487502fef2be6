"""Foreign modules behind the contract of a model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

import dllm
from dllm.models import WrappedModel, load, wrap
from dllm.state.plan import StepPlan
from tests.support import GOLDEN

VOCABULARY, LENGTH = 30, 12
TOKENS = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
HEAD = torch.tensor([[5, 0, 5], [8, 7, 1]])
IDS: dict[str, Any] = {"mask_token_id": 28, "eos_token_id": 29}


def plan(lengths: list[int] | None = None, **options: Any) -> StepPlan:
    """Returns a pass over the whole canvas of rows with these lengths."""
    attend = None
    if lengths is not None:
        attend = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None])[:, None]
    columns = torch.arange(LENGTH).expand(2, -1)
    return StepPlan(
        "refresh", columns, HEAD, **{"num_keys": LENGTH, "attention_mask": attend, **options}
    )


def rows(logits: Tensor) -> Tensor:
    return logits[torch.arange(2)[:, None], HEAD]


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=[29, 27],
        **options,
    )
    module = LlamaForCausalLM(config)
    module.eval().requires_grad_(False)
    return module


def one_hot(tokens: Tensor) -> Tensor:
    return nn.functional.one_hot(tokens, VOCABULARY).float()


def test_a_function_of_tokens() -> None:
    model = wrap(one_hot, **IDS, vocab_size=VOCABULARY)
    assert torch.equal(model.forward(TOKENS, plan(), None), rows(one_hot(TOKENS)))
    assert model.spec.max_length > 10**9
    assert model.spec.pad_token_id == 29
    assert model.device == torch.get_default_device()
    assert model.name == "wrapped"


def test_an_object_with_logits() -> None:
    model = wrap(lambda t: SimpleNamespace(logits=one_hot(t)), **IDS, vocab_size=VOCABULARY)
    assert torch.equal(model.forward(TOKENS, plan(), None), rows(one_hot(TOKENS)))


def test_a_function_that_takes_a_padding_mask() -> None:
    seen = []

    def module(tokens: Tensor, attention_mask: Tensor) -> Tensor:
        seen.append(attention_mask)
        return one_hot(tokens)

    model = wrap(module, **IDS, vocab_size=VOCABULARY)
    model.forward(TOKENS, plan([12, 9]), None)
    model.forward(TOKENS, plan(), None)
    assert [mask.dtype for mask in seen] == [torch.bool] * 2
    assert seen[0].sum(1).tolist() == [12, 9]
    assert not seen[0][1, 9:].any()
    assert seen[1].all()


def test_a_function_without_a_mask_refuses_rows_of_different_lengths() -> None:
    model = wrap(one_hot, **IDS, vocab_size=VOCABULARY)
    with pytest.raises(ValueError, match=r"takes no attention_mask.*different lengths"):
        model.forward(TOKENS, plan([12, 9]), None)
    with pytest.raises(ValueError, match=r"takes no attention_mask.*different lengths"):
        dllm.stream(model, [[1, 2, 3], [4, 5]], max_new_tokens=4)
    dllm.stream(model, [[1, 2], [4, 5]], max_new_tokens=4)


def test_a_transformers_model_becomes_bidirectional() -> None:
    module = llama()
    model = wrap(module, mask_token_id=28, logit_shift=1)
    assert model.spec.eos_token_ids == (29, 27)
    assert (model.spec.vocab_size, model.spec.max_length) == (VOCABULARY, 64)
    assert model.spec.logit_shift == 1
    given = model.forward(TOKENS, plan(), None)
    causal = rows(module(input_ids=TOKENS).logits)
    assert (given - causal).abs().max() > 0.1
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    assert (model.forward(changed, plan(), None)[:, 1] - given[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_hidden_from_a_transformers_model(kernel: str, dtype: torch.dtype) -> None:
    module = llama(attn_implementation=kernel)
    nn.Module.to(module, dtype)
    model = wrap(module, mask_token_id=28)
    given = model.forward(TOKENS, plan([12, 9]), None)
    changed = TOKENS.clone()
    changed[1, 9:] = 3
    assert torch.equal(model.forward(changed, plan([12, 9]), None), given)
    short = torch.arange(9)[None]
    alone = StepPlan("refresh", short, HEAD[1:], num_keys=9)
    expected = model.forward(TOKENS[1:, :9], alone, None)[0]
    tolerance = 1e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(given[1], expected, rtol=0, atol=tolerance)


def test_rows_are_gathered_as_a_hosted_model_does() -> None:
    hosted = load(GOLDEN / "models" / "llada_gqa")
    ids: dict[str, Any] = {"mask_token_id": 126, "eos_token_id": 127, "vocab_size": 128}
    wrapped = wrap(hosted.network, **ids)
    expected = hosted.forward(TOKENS, plan(), None)
    torch.testing.assert_close(wrapped.forward(TOKENS, plan(), None), expected, rtol=0, atol=1e-5)
    assert wrapped.device == hosted.device


def test_ids_default_to_the_configuration_and_the_tokenizer() -> None:
    module = llama(mask_token_id=28, pad_token_id=26)
    spec = wrap(module).spec
    assert (spec.mask_token_id, spec.pad_token_id) == (28, 26)
    tokenizer: Any = SimpleNamespace(mask_token_id=7, eos_token_id=8, pad_token_id=9)
    spec = wrap(one_hot, vocab_size=VOCABULARY, tokenizer=tokenizer).spec
    assert (spec.mask_token_id, spec.eos_token_ids, spec.pad_token_id) == (7, (8,), 9)
    assert wrap(module, eos_token_id=3, mask_token_id=2).spec.eos_token_ids == (3,)


@pytest.mark.parametrize("missing", ["mask_token_id", "eos_token_id", "vocab_size"])
def test_what_nothing_tells_must_be_given(missing: str) -> None:
    options = {**IDS, "vocab_size": VOCABULARY}
    del options[missing]
    with pytest.raises(ValueError, match=f"cannot tell the {missing}.*give {missing}="):
        wrap(one_hot, **options)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda t: one_hot(t)[..., :-1], r"returned \[2, 12, 29\] torch.float32; expected .*30\]"),
        (lambda t: one_hot(t)[:, -1], r"returned \[2, 30\]"),
        (lambda t: one_hot(t).long(), r"torch.int64; expected floating logits \[2, 12, 30\]"),
        (lambda t: [one_hot(t)], "returned list"),
    ],
)
def test_wrong_logits(module: Callable[[Tensor], Any], message: str) -> None:
    model = wrap(module, **IDS, vocab_size=VOCABULARY)
    with pytest.raises(ValueError, match=message):
        model.forward(TOKENS, plan(), None)


def test_a_wrapped_module_has_no_cache() -> None:
    model: WrappedModel = wrap(one_hot, **IDS, vocab_size=VOCABULARY, name="toy")
    assert not model.supports_cache
    with pytest.raises(ValueError, match=r"'toy' is a wrapped module.*use cache='none'"):
        model.new_store(2, LENGTH)
    with pytest.raises(ValueError, match="feeds 12 of 20 columns"):
        model.forward(TOKENS, plan(num_keys=20), None)
    with pytest.raises(ValueError, match="through a K/V store"):
        model.forward(TOKENS, plan(stored=TOKENS), None)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'wrapped' is in training mode.*call module.eval\(\)"):
        wrap(llama().train(), mask_token_id=28)


def test_attention_without_a_4d_mask_is_refused() -> None:
    module = llama()
    module.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(
        ValueError, match="attn_implementation='flex_attention', which takes no 4-D"
    ):
        wrap(module, mask_token_id=28)


ENCODERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ModernBERT": (ModernBertForMaskedLM, ModernBertConfig, {"local_attention": 8}),
    "BERT": (BertForMaskedLM, BertConfig, {}),
}


def encoder(name: str, kernel: str = "sdpa", **options: Any) -> PreTrainedModel:
    kind, config, further = ENCODERS[name]
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 26,
        "eos_token_id": 29,
        "bos_token_id": 25,
        "cls_token_id": 25,
        "sep_token_id": 29,
        "initializer_range": 0.3,
        "attn_implementation": kernel,
    }
    module: PreTrainedModel = kind(config(**shape, **further, **options))
    for weight in module.eval().requires_grad_(False).parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, 0.0, 0.2)
    return module


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_keeps_its_own_attention_and_sees_no_padding(name: str, kernel: str) -> None:
    """Local layers of ModernBERT keep their windows, which a 4-D mask would replace."""
    module = encoder(name, kernel)
    model = wrap(module, mask_token_id=28)
    expected = rows(module(input_ids=TOKENS).logits)
    assert torch.equal(model.forward(TOKENS, plan(), None), expected)
    given = model.forward(TOKENS, plan([12, 9]), None)
    changed = TOKENS.clone()
    changed[1, 9:] = 3
    assert torch.equal(model.forward(changed, plan([12, 9]), None), given)
    alone = module(input_ids=TOKENS[1:, :9]).logits[0, HEAD[1]]
    torch.testing.assert_close(given[1], alone, rtol=0, atol=1e-4)


def test_windows_of_local_layers_matter_here() -> None:
    """So that the test above could fail."""
    module = encoder("ModernBERT")
    everything = torch.zeros(2, 1, LENGTH, LENGTH)
    given = module(input_ids=TOKENS, attention_mask=everything).logits
    assert (given - module(input_ids=TOKENS).logits).abs().max() > 0.1


@pytest.mark.parametrize("name", ENCODERS)
def test_a_masked_language_model_generates(name: str) -> None:
    """Rows of a batch are what they are alone, and its mask token is no answer."""
    model = wrap(encoder(name).double(), mask_token_id=28)
    assert (model.spec.eos_token_ids, model.spec.pad_token_id) == ((29,), 26)
    assert model.spec.max_length == 64
    prompts = [[25, 3, 4, 5], [25, *[6] * 9], [25, 7]]
    options: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "at_eos": "ignore"}
    options |= {"scheduler": "threshold:0.3", "temperature": 1.5}
    together = dllm.generate(model, prompts, seed=[0, 1, 2], **options).sequences
    for seed, (prompt, row) in enumerate(zip(prompts, together, strict=True)):
        assert dllm.generate(model, [prompt], seed=seed, **options).sequences[0] == row
        assert row[: len(prompt)] == tuple(prompt)
        assert 28 not in row
    assert len(set(together[0][4:])) > 1
