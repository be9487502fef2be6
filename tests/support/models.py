"""Models small enough for a CPU, sensitive to order and context, and what watches their passes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import dllm
from dllm.models.encoder_decoder import EncoderDecoder
from dllm.models.families import FAMILIES
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support import GOLDEN

MODELS = ("llada_mha", "llada_gqa", "dream_gqa")
EXPAND = 5  # often proposed by the golden models, though none was taught to ask for masks with it


@cache
def golden_model(name: str, dtype: str = "float64") -> dllm.HostedModel:
    """Returns one of the models on which the official implementations were recorded."""
    return dllm.load(GOLDEN / "models" / name, dtype=dtype)


@cache
def model_of(name: str, dtype: str = "float64") -> dllm.HostedModel:
    """Returns the embedded model, a golden one or a random one of a family with an exact cache."""
    if name == "tiny":
        return dllm.load("tiny")
    return golden_model(name, dtype) if name in MODELS else family_model(name)


def taught(model: dllm.HostedModel) -> dllm.HostedModel:
    """Returns a model with an expand token, for the schedulers that are of use with one alone."""
    return replace(model, spec=replace(model.spec, expand_token_id=EXPAND))


def random_prompts(count: int, seed: int = 0, low: int = 3, high: int = 40) -> list[list[int]]:
    """Returns prompts of different lengths in token ids of the golden models."""
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=source).tolist()
    return [torch.randint(0, 125, (n,), generator=source).tolist() for n in lengths]


class Watched:
    """A model that hands each pass to a check, before and after it runs."""

    def __init__(self, model: dllm.HostedModel, check: Any) -> None:
        self.model, self.check = model, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore) -> Tensor:
        before = [tensor.clone() for tensor in (*store.keys, *store.values)]
        logits = self.model.forward(tokens, plan, store)
        self.check(tokens, plan, store, before, logits)
        return logits


class Poisoned:
    """A model whose store starts with large random values: nothing stale may be read."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        store = self.model.new_store(num_rows, num_columns)
        for tensor in (*store.keys, *store.values):
            tensor.normal_(std=30, generator=torch.Generator().manual_seed(3))
        return store


class Misleading:
    """A model that gives random logits where a pass has none: nobody may read them."""

    def __init__(self, model: dllm.HostedModel, seed: int) -> None:
        self.model, self.seed = model, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits = self.model.forward(tokens, plan, store)
        if plan.known is None:
            return logits
        known = (
            plan.known if plan.logit_columns is None else plan.known.gather(1, plan.logit_columns)
        )
        window = known.shape[1]  # shadows follow
        drawn = torch.randn(logits[:, :window].shape, generator=self.random(), dtype=logits.dtype)
        logits[:, :window] = torch.where(known[..., None], logits[:, :window], 9 * drawn)
        return logits

    def random(self) -> torch.Generator:
        self.seed += 1
        return torch.Generator().manual_seed(self.seed)


BLOCK = 8
MASK = 127
FAMILY = {
    "sdar": "SDARForCausalLM",
    "fast_dllm_v2": "Fast_dLLM_QwenForCausalLM",
    "wedlm": "WeDLMForCausalLM",
    "e2d2": "E2D2",
    "e2d2_shared": "E2D2",
    "nemotron": "DiffEncoderModel",
    "llada2_moe": "LLaDA2MoeModelLM",
    "sdar_moe": "SDARMoeForCausalLM",
    "bd3lm": "A2DQwen3LMHeadModel",
}
CONFIG: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "block_size": BLOCK,
    "bd_size": BLOCK,
}
STACKS: dict[str, dict[str, Any]] = {  # of an encoder and a decoder
    "e2d2": {"_target_": "LLMasEncoderDecoder", "num_decoder_layers": 1},
    "e2d2_shared": {
        "_target_": "LLMasEncoderDecoderShareKV",
        "tie_encoder_decoder_weights": True,
        "keep_top_decoder_layers": True,
        "num_decoder_layers": 1,
    },
}
EXPERTS: dict[str, dict[str, Any]] = {  # in groups behind a dense layer, or all alike
    "llada2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
        "block_length": BLOCK,
    },
    "sdar_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
    },
}


@cache
def family_model(name: str) -> dllm.HostedModel:
    """Returns a random model of a family with a cache that is exact, or of none but causal."""
    with torch.inference_mode(False):  # whoever asks first: all tests share it
        return _family_model(name)


def speaking_model(name: str, tokenizer: PreTrainedTokenizerFast) -> dllm.HostedModel:
    """Returns a random model of a family with the words of a tokenizer that can spell anything."""
    with torch.inference_mode(False):
        made = _family_model(name, vocab_size=len(tokenizer), max_position_embeddings=2048)
    ends = (tokenizer.eos_token_id,)
    spec = replace(
        made.spec,
        vocab_size=len(tokenizer),
        max_length=2048,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_ids=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    return replace(made, spec=spec, tokenizer=tokenizer)


def _family_model(name: str, **sizes: int) -> dllm.HostedModel:
    family = FAMILIES[FAMILY.get(name, "SDARForCausalLM")]
    config = {**CONFIG, **EXPERTS.get(name, {}), **sizes}
    shape = family.read_network({**config, "backbone_config": STACKS.get(name)})
    network = (Transformer if shape.decoder is None else EncoderDecoder)(shape)
    source = torch.Generator().manual_seed(4)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, 1.0, 0.2, source) if weight.dim() == 1 else None
        torch.nn.init.normal_(weight, 0.0, 0.4, source) if weight.dim() > 1 else None
    attention = "causal" if name == "causal" else family.read_attention(config)
    spec = dllm.ModelSpec(
        vocab_size=128,
        max_length=512,
        mask_token_id=MASK,
        eos_token_ids=(126,),
        pad_token_id=126,
        logit_shift=family.logit_shift,
        attention=attention,
        block_length=None if name == "causal" else family.read_block_length(config),
        blocks_from=family.blocks_from if attention == "block_causal" else "zero",
    )
    return dllm.HostedModel(name, network.double().eval(), spec)
