"""All of `generate`'s arguments, and the folder by which transformers finds such a function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dllm.integrations.transformers.decoding import diffusion_generate
from dllm.settings import HINTS

_REFUSED = ("assistant_model", "negative_prompt_ids", "negative_prompt_attention_mask")
_RENAMED = {"streamer": "diffusion_streamer", "tokenizer": "diffusion_tokenizer"}
_FILE = '''"""Decoding of diffusion language models, as `model.generate` of transformers."""

from dllm.integrations.transformers import generate

__all__ = ["generate"]
'''


def generate(model: Any, inputs: Any = None, **given: Any) -> Any:
    """Returns what `model.generate(inputs, **given, custom_generate=diffusion_generate)` returns.

    It takes `streamer`, `tokenizer` and `stop_strings` under their own names, which `generate`
    hands to no callable, and refuses by name what `generate` would not say to one: an
    `assistant_model`, negative prompts. Unknown names are refused by transformers.
    """
    for name in _REFUSED:
        if given.get(name) is not None:
            hint = HINTS.get(name, HINTS["negative_prompt_ids"])
            raise ValueError(f"{name} was given, and diffusion_generate has no such thing: {hint}")
    if given.get("synced_gpus"):
        raise ValueError("synced_gpus=True: rows of several processes are not kept in step")
    for name, own in _RENAMED.items():
        value = given.pop(name, None)
        if value is not None:
            given[own] = value
    # Taken before `generate` asks for a tokenizer that it would keep for itself.
    stop = given.pop("stop_strings", None)
    if stop is not None:
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    # Past `model.generate`, which a checkpoint's own folder may have replaced by this function.
    plain = type(model).generate
    return plain(model, inputs, custom_generate=diffusion_generate, **given)


def save_custom_generate(folder: str | os.PathLike[str]) -> Path:
    """Writes `custom_generate/generate.py` into a folder, and returns its path.

    With it `model.generate(..., custom_generate=folder, trust_remote_code=True)` decodes with
    `generate` of this module, and so does a model that is loaded from the folder with
    `trust_remote_code=True`, which needs no `custom_generate` then. Both need this package.
    """
    path = Path(folder) / "custom_generate" / "generate.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_FILE, encoding="utf-8")
    return path
