"""From settings to the loop that decodes: scheduler, cache, sampling, noise, who may enter."""

from __future__ import annotations

from dataclasses import replace

import torch

from dllm.compatible import check
from dllm.decoding.batching import Admission, admission_of
from dllm.decoding.loop import DenoisingLoop
from dllm.decoding.speculation.check import check_verifier
from dllm.decoding.speculation.loop import verified
from dllm.models.guidance import GuidedModel
from dllm.models.model import DenoisingModel
from dllm.schedulers import Needs, Scheduler
from dllm.settings import Settings
from dllm.state.candidates import Sampling
from dllm.state.canvas import Canvas
from dllm.state.layout import Layout
from dllm.state.noise import CounterNoise, Noise


def loop_of(
    model: DenoisingModel, canvas: Canvas, settings: Settings, infilled: bool
) -> DenoisingLoop:
    """Returns the loop of settings; `infilled` canvases have text behind their slots."""
    scheduler, cache = check(model, settings)
    layout = canvas.layout
    scheduler.check(int(canvas.num_blocks.max()), layout.block_length)
    canvas.keep_history = scheduler.can_revise
    if settings.guidance_scale > 0:
        model = GuidedModel(model, settings.guidance_scale, given=canvas.fixed)
    loop = DenoisingLoop(
        model=model,
        scheduler=scheduler,
        cache=cache,
        sampling=_sampling(scheduler, layout, settings),
        noise=settings.noise or _noise(layout.num_rows, settings, model.device),
        needs=needs_of(scheduler, layout.num_slots, layout.block_length),
        at_eos=settings.at_eos or ("ignore" if infilled else "stop"),
    )
    if settings.verifier is None:
        return loop
    return verified(loop, check_verifier(settings, scheduler, cache))


def needs_of(scheduler: Scheduler, num_slots: int, block: int) -> Needs:
    """Returns what a scheduler asks of the loop; revising takes logits of the whole block."""
    needs = scheduler.needs(num_slots, block)
    return needs.union(Needs(whole_block=True)) if scheduler.can_revise else needs


def admitting(
    loop: DenoisingLoop, everyone: Canvas, batch_size: int
) -> tuple[DenoisingLoop, Admission]:
    """Returns the loop that decodes so many rows at a time, and who lets the others in."""
    where = f"batch_size={batch_size} has {len(everyone.tokens) - batch_size} prompt(s) wait"
    if loop.memory is not None:
        raise ValueError(
            f"{where}, and memory is of rows that are there from the start: leave one of them out, "
            "or give as many prompts as the batch has rows"
        )
    if loop.observer is not None:
        raise ValueError(f"{where}, and passes are observed of one batch: leave batch_size out")
    if not isinstance(loop.noise, CounterNoise):
        raise ValueError(
            f"{where}, and noise={type(loop.noise).__name__} does not tell prompts apart: give "
            "seed instead, or leave batch_size out"
        )
    admission = admission_of(everyone, batch_size, loop.noise)
    model = loop.model
    if isinstance(model, GuidedModel):
        model = replace(model, given=admission.canvas.given)
    return replace(loop, model=model, noise=admission.seated, admission=admission), admission


def _sampling(scheduler: Scheduler, layout: Layout, settings: Settings) -> Sampling:
    ends = layout.eos_token_ids
    needs = scheduler.needs(layout.num_slots, layout.block_length)
    return Sampling(
        mask_token_id=layout.mask_token_id,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        confidence=settings.confidence or scheduler.reads,
        forbidden_token_ids=settings.forbidden_token_ids + (ends if settings.forbid_eos else ()),
        deferred_token_ids=settings.deferred_token_ids + (ends if settings.defer_eos else ()),
        dtype=settings.statistics_dtype,
        lean=settings.verifier is None and not needs.reads_logits,
    )


def _noise(num_rows: int, settings: Settings, device: torch.device) -> Noise:
    """Returns noise whose seeds are given, drawn from given generators, or drawn anew."""
    seed, generator = settings.seed, settings.generator
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(generator, list):
        _check_count("generator", len(generator), num_rows)
        drawn = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generator]
    elif isinstance(seed, list):
        _check_count("seed", len(seed), num_rows)
        drawn = seed
    elif seed is not None:
        drawn = [seed + row for row in range(num_rows)]
    else:
        where = generator.device if generator is not None else "cpu"
        drawn = torch.randint(2**62, (num_rows,), generator=generator, device=where).tolist()
    return CounterNoise(torch.tensor(drawn, device=device))


def _check_count(name: str, given: int, num_rows: int) -> None:
    if given != num_rows:
        raise ValueError(
            f"{given} {name}s were given for {num_rows} prompts: one a prompt is needed"
        )
