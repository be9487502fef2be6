"""A tiny random DiffusionGemma, as transformers saves it, with a tokenizer of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

CANVAS = 16
VOCABULARY = 200
IMAGE: dict[str, Any] = {"image_token_id": 190, "boi_token_id": 191, "eoi_token_id": 192}
ENDS = [1, 106]
BEGIN = 2


def save_tiny(folder: Path, **generation: Any) -> Path:
    """Writes weights, configuration and tokenizer; options are of generation_config.json."""
    sizes: dict[str, Any] = {"global_head_dim": 16, "num_global_key_value_heads": 1}
    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,  # shorter than most prompts
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=ENDS[0],
        bos_token_id=BEGIN,
        initializer_range=0.3,  # outputs that differ between positions
        **sizes,
    )
    vision = transformers.Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=CANVAS, **IMAGE
    )
    torch.manual_seed(0)
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    given = {"max_new_tokens": 32, "max_denoising_steps": 8, "t_min": 0.4, "t_max": 0.8}
    model.generation_config = transformers.DiffusionGemmaGenerationConfig(
        eos_token_id=ENDS, pad_token_id=0, **{**given, **generation}
    )
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="w1", pad_token="w0", unk_token="w3"
    )
    tokenizer.save_pretrained(folder)
    return folder
