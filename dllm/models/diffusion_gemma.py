"""DiffusionGemma: transformers' own class as a model of the uniform process.

How it is decoded. The canvas is the project's own, one block for each canvas of the model (256
columns, counted from the prompt; a last block is whole, and the output cuts what was not asked
for). A column that waits holds a flag, an id right behind the vocabulary, so that progress, rows
that wait, stop strings, traces and outputs need nothing of their own. `schedulers/renoise.py` is
the sampler: what is accepted lies in its state, and a block is written at once.
`decoding/uniform.py` runs the passes: as rows enter a block it encodes what is new before it (kind
"refresh"), then the decoder denoises the blocks of all rows (kind "step"), fed random tokens of
each row's own noise and its last logits. Rows are left-aligned as everywhere: keys of a row lie in
slots of its own (`EncoderKeys`), and masks, which transformers takes ready made, hide the slots
that it has not filled. Caches, verifiers and guidance have no part in it and are refused
(`compatible.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dllm.models.config import CheckpointError, UniformSpec
from dllm.models.encoder_keys import EncoderKeys, Sight
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

ARCHITECTURE = "DiffusionGemmaForBlockDiffusion"
TESTED = "5.24"  # the oldest transformers that this was run with
# generation_config.json -> option of the scheduler; the bound lies in a part of its own.
_SAMPLER = {
    "max_denoising_steps": "steps",
    "t_max": "t_max",
    "t_min": "t_min",
    "stability_threshold": "stability_threshold",
    "confidence_threshold": "confidence_threshold",
}


def is_diffusion_gemma(config: Mapping[str, Any]) -> bool:
    """Whether transformers' own class runs a checkpoint, and no family of the project."""
    return bool(config.get("architectures") == [ARCHITECTURE])


@dataclass(frozen=True)
class DiffusionGemma:
    """A causal encoder that keeps finished text, and a decoder that denoises a canvas over it."""

    name: str
    module: Any  # transformers' DiffusionGemmaForBlockDiffusion
    spec: UniformSpec
    tokenizer: PreTrainedTokenizerBase | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json
    revision: str | None = None  # commit of the hub's repository; None for a folder

    supports_cache = False

    @property
    def device(self) -> torch.device:
        found: torch.device = self.module.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the encoder's keys and values."""
        found: torch.dtype = self.module.dtype
        return found

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        raise ValueError(f"{self.name!r} keeps its encoder's keys by itself: use cache='none'")

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        raise ValueError(
            f"{self.name!r} has no pass over a whole canvas: its encoder reads finished text and "
            "its decoder one block; decode it with dllm.generate"
        )

    def check_prompt(self, prompt: Sequence[int], where: str) -> None:
        """Raises ValueError for a prompt that is empty or has a place for an image."""
        if not prompt:
            raise ValueError(
                f"{where} is empty, and the encoder needs a token: begin with bos_token_id"
            )
        for key in ("image_token_id", "boi_token_id", "eoi_token_id"):
            if self.config.get(key) in prompt:
                raise ValueError(
                    f"{where} holds {key}={self.config[key]}, a place of an image: images are not "
                    "read here; give text, or call transformers' own generate with pixel_values"
                )

    def new_keys(self, num_columns: int) -> EncoderKeys:
        """Returns the empty slots for rows of so many columns."""
        text = self.module.config.get_text_config(decoder=True)
        window = {"sliding_attention": min(text.sliding_window - 1, num_columns)}
        kinds = tuple(text.layer_types)
        return EncoderKeys({kind: window.get(kind, num_columns) for kind in kinds}, kinds)

    def encode(self, tokens: Tensor, sight: Sight, keys: EncoderKeys) -> None:
        """Reads tokens (B, n) int64, and keeps their keys and values."""
        self.module.model.encoder(
            input_ids=tokens, position_ids=sight.columns, attention_mask=sight.masks, cache=keys
        )

    def denoise(
        self,
        tokens: Tensor,
        sight: Sight,
        keys: EncoderKeys,
        conditioning: Tensor | None,
        begun: Tensor,
    ) -> Tensor:
        """Returns the logits (B, W, V) float32 of noisy blocks (B, W) int64.

        `conditioning` (B, W, V) are the tempered logits of the forward before, None where no row
        has any; those of rows that have not `begun` (B,) bool are not read. V is the vocabulary
        without the flag.
        """
        out = self.module(
            decoder_input_ids=tokens,
            decoder_position_ids=sight.columns,
            decoder_attention_mask=sight.masks,
            cache=keys,
            self_conditioning_logits=conditioning,
            self_conditioning_mask=begun,
        )
        logits: Tensor = out.logits
        return logits


def load_module(folder: Path, dtype: torch.dtype, where: Mapping[str, Any]) -> nn.Module:
    """Returns transformers' model of a folder; CheckpointError where it is not to be had.

    `where` are the arguments that place it. No code of the folder is run.
    """
    import transformers  # start-up time: only this family is run by it

    # Looked up when asked for: transformers before it has everything else that is needed.
    kind = getattr(transformers, ARCHITECTURE, None)
    if kind is None:
        raise CheckpointError(
            f"{folder} is a {ARCHITECTURE}, which transformers {transformers.__version__} does not "
            f"have: pip install 'transformers>={TESTED}'"
        )
    try:
        module: nn.Module = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **where
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} cannot be loaded by transformers: {error}") from error
    return module.eval()


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what a config.json says of text; CheckpointError where it says nothing."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise CheckpointError(f"config.json of {ARCHITECTURE} has no 'text_config'")
    return text


def spec_of(config: Mapping[str, Any], ends: tuple[int, ...]) -> UniformSpec:
    """Returns what decoding must know of a config.json; `ends` are its end tokens."""
    text = text_part(config)
    wanted = {"vocab_size": text, "max_position_embeddings": text, "canvas_length": config}
    lacking = [key for key, part in wanted.items() if not part.get(key)]
    if lacking:
        raise CheckpointError(f"config.json of {ARCHITECTURE} lacks {', '.join(lacking)}: add it")
    if text.get("use_bidirectional_attention") == "all":  # text that was read would change
        raise CheckpointError(
            f"config.json of {ARCHITECTURE} has use_bidirectional_attention='all'; supported: "
            "'vision', or the key left out: the encoder reads causally"
        )
    window = text.get("sliding_window")
    if window is not None and not (isinstance(window, int) and window > 1):
        raise CheckpointError(f"config.json of {ARCHITECTURE} has sliding_window={window!r}: > 1")
    pad = text.get("pad_token_id")
    try:
        return UniformSpec(
            vocab_size=text["vocab_size"] + 1,
            max_length=text["max_position_embeddings"],
            mask_token_id=text["vocab_size"],
            eos_token_ids=ends,
            pad_token_id=ends[0] if pad is None else pad,
            block_length=config["canvas_length"],
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{error} (in config.json or generation_config.json)") from error


def defaults_of(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a generation_config.json recommends, the sampler's as a scheduler.

    What it leaves out has the scheduler's default, which is that of transformers.
    """
    named = {_SAMPLER[key]: generation[key] for key in _SAMPLER if generation.get(key) is not None}
    inner, known = generation.get("sampler_config") or {}, "EntropyBoundSamplerConfig"
    if not isinstance(inner, Mapping) or inner.get("_cls_name", known) != known:
        raise CheckpointError(
            f"generation_config.json has sampler_config={inner!r}; supported: {known}"
        )
    if inner.get("entropy_bound") is not None:
        named["entropy_bound"] = inner["entropy_bound"]
    most = generation.get("max_new_tokens") or 256  # as transformers' own defaults have it
    return {"max_new_tokens": most, "scheduler": {"name": "renoise", **named}}
