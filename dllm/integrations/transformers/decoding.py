"""`custom_generate=diffusion_generate`: transformers' `generate` prepares, and a canvas decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from dllm.cache import Cache
from dllm.decoding.speculation.verifiers import Verifier
from dllm.generate import Stream, stream
from dllm.integrations.transformers.asked import (
    attention_mask_of,
    check_configuration,
    of_config,
    read_criteria,
    read_processors,
)
from dllm.integrations.transformers.streaming import Streamer, Told, up_to_end
from dllm.models.model import DenoisingModel
from dllm.models.wrap import wrap
from dllm.output import GenerationOutput
from dllm.schedulers import Scheduler
from dllm.state.candidates import ConfidenceSource

_OF_WRAP = ("mask_token_id", "logit_shift", "diffusion_tokenizer")


@dataclass
class DiffusionOutput(ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`."""

    sequences: Tensor | None = None  # (B, L) int64 prompts as given, answers, padding
    tokens_per_forward: Tensor | None = None  # (B,) float32
    generation: GenerationOutput | None = None  # texts, metrics and trace of `dllm.generate`


def diffusion_generate(  # noqa: PLR0913 transformers reads off the names what may be given
    model: nn.Module,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: GenerationConfig | None = None,
    *,
    scheduler: str | Mapping[str, Any] | Scheduler | None = None,
    diffusion_cache: str | Mapping[str, Any] | Cache | None = None,
    verifier: str | Mapping[str, Any] | Verifier | None = None,
    block_length: int | None = None,
    steps: int | None = None,
    confidence: ConfidenceSource | None = None,
    constraint: Any = None,
    stop: Sequence[str] | None = None,
    at_eos: Literal["stop", "ignore"] | None = None,
    seed: int | None = None,
    mask_token_id: int | None = None,
    logit_shift: Literal[0, 1] | None = None,
    diffusion_tokenizer: PreTrainedTokenizerBase | None = None,
    diffusion_streamer: Streamer | None = None,
    **of_model: Any,
) -> Tensor | DiffusionOutput:
    """Returns prompts (B, L) int64 with answers behind them, padded on the right.

    It is for `model.generate(..., custom_generate=diffusion_generate)`. Answers are those of
    `dllm.generate(dllm.wrap(model), ...)`: up to the end token or the stop string, which are in
    them as with transformers. What is not given is read from `generation_config`, in which these
    names may stand. `temperature`, `top_k`, `top_p`, `repetition_penalty`, `min_new_tokens` and
    `suppress_tokens` are those of `generate`.

    Names that `generate` keeps for itself begin with `diffusion_`: it hands no `streamer` and no
    `tokenizer` to a callable, and `cache` is the one that it makes. `diffusion_tokenizer` is for
    stop strings and constraints. Raises ValueError that names what cannot be done.
    """
    config = GenerationConfig() if generation_config is None else generation_config
    check_configuration(config)
    named = {
        "scheduler": scheduler,
        "diffusion_cache": diffusion_cache,
        "verifier": verifier,
        "block_length": block_length,
        "steps": steps,
        "confidence": confidence,
        "constraint": constraint,
        "stop": stop,
        "at_eos": at_eos,
        "seed": seed,
        "mask_token_id": mask_token_id,
        "logit_shift": logit_shift,
        "diffusion_tokenizer": diffusion_tokenizer,
    }
    options, width = of_config(config, named), input_ids.shape[1]
    options |= read_criteria(stopping_criteria or (), width)
    options |= read_processors(logits_processor or (), bool(config.do_sample), width)
    wrapped = _wrapped(model, options, config)
    mask = attention_mask_of(of_model)
    encoded = {"input_ids": input_ids} if mask is None else _encoded(input_ids, mask)
    running = stream(wrapped, encoded, **options)
    generation = _drained(running, diffusion_streamer, input_ids)
    sequences = _sequences(running, generation, input_ids)
    if not config.return_dict_in_generate:
        return sequences
    speed = torch.tensor([row.tokens_per_forward for row in generation.metrics.rows])
    return DiffusionOutput(sequences, speed, generation)


def _wrapped(model: nn.Module, options: dict[str, Any], config: GenerationConfig) -> DenoisingModel:
    """Returns the model behind our contract; its options are taken out of the others."""
    own = {name: options.pop(name) for name in _OF_WRAP if name in options}
    if "diffusion_cache" in options:
        options["cache"] = options.pop("diffusion_cache")
    tokenizer = own.pop("diffusion_tokenizer", None)
    if "stop" in options and tokenizer is None:
        raise ValueError(
            f"stop_strings={list(options['stop'])!r}: which tokens make a text is known to the "
            "tokenizer alone: give diffusion_tokenizer=tokenizer"
        )
    ends = options.get("eos_token_id")
    return wrap(
        model,
        eos_token_id=ends,
        pad_token_id=config.pad_token_id,
        tokenizer=tokenizer,
        name=type(model).__name__,
        **own,
    )


def _encoded(input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} must mark padding, as {tuple(input_ids.shape)} "
            "of input_ids"
        )
    return {"input_ids": input_ids, "attention_mask": mask.long()}


def _drained(running: Stream, streamer: Streamer | None, input_ids: Tensor) -> GenerationOutput:
    """Runs a generation to its end, telling a streamer, and returns its output."""
    if streamer is None:
        for _ in running:
            pass
        return running.output
    told = Told(streamer, running, input_ids)
    for event in running:
        told.step(event)
    generation = running.output
    told.end(_answers(running, generation)[0])
    return generation


def _answers(running: Stream, generation: GenerationOutput) -> list[list[int]]:
    ends = running.canvas.layout.eos_token_ids
    return [
        up_to_end(list(tokens[row.prompt_tokens :]), ends, running)
        for tokens, row in zip(generation.sequences, generation.metrics.rows, strict=True)
    ]


def _sequences(running: Stream, generation: GenerationOutput, input_ids: Tensor) -> Tensor:
    """Returns prompts as they were given, padding included, with answers behind them."""
    answers = _answers(running, generation)
    longest = max(len(answer) for answer in answers)
    pad = running.model.spec.pad_token_id
    rows = [answer + [pad] * (longest - len(answer)) for answer in answers]
    new = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids, new.reshape(len(rows), longest)], 1)
