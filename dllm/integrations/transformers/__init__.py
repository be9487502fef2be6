"""Our decoding behind transformers' `model.generate`.

model.generate(**encoded, custom_generate=diffusion_generate, max_new_tokens=64,
               scheduler="threshold:0.9", block_length=32)
"""

from __future__ import annotations

from dllm.integrations.transformers.decoding import DiffusionOutput, diffusion_generate
from dllm.integrations.transformers.whole import generate, save_custom_generate

__all__ = ["DiffusionOutput", "diffusion_generate", "generate", "save_custom_generate"]
