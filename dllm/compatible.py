"""Which scheduler, cache, verifier and model go together, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from dllm import cache as caches
from dllm import schedulers
from dllm.cache import Cache
from dllm.cache.none import NoCache
from dllm.constraints.grammar import methods_by_token
from dllm.decoding.languages.refused import CONSTRAINT_REFUSES, check_asking, check_left_to_right
from dllm.decoding.speculation import verifiers
from dllm.decoding.speculation.refused import check_verifier
from dllm.infilling.refused import check_scheduler, has_constraint
from dllm.models.config import UniformSpec
from dllm.models.model import DenoisingModel, check_rounded
from dllm.schedulers import Needs, Scheduler
from dllm.schedulers.renoise import Renoise
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings, check_joint

_MASKS_BEHIND = "in {!r} masks stand behind all tokens, so that a commit changes what is seen"


def check(model: DenoisingModel, settings: Settings) -> tuple[Scheduler, Cache]:
    """Returns the scheduler and cache of settings; raises ValueError if they do not go together."""
    scheduler = schedulers.registry.create(settings.scheduler)
    cache = caches.registry.create(settings.cache)
    _check_model(model, scheduler, cache, settings)
    for option, ids in scheduler.token_ids().items():
        model.spec.check_token_ids(option, ids, mask=True)  # no method commits it anyway
    name = scheduler.summary()["name"]
    needs = scheduler.needs(settings.max_new_tokens, settings.block_length or DEFAULT_BLOCK_LENGTH)
    if (needs.shadow or needs.room) and not model.supports_cache:
        wish = "feeds columns twice" if needs.shadow else "hides columns of a gap"
        raise ValueError(
            f"scheduler {name!r} {wish}, which the wrapped module {model.name!r} "
            "cannot: load the checkpoint with dllm.load"
        )
    if cache.needs_plan and not scheduler.plans_ahead:
        raise ValueError(
            f"cache {cache.summary()['name']!r} feeds what the next step commits, which scheduler "
            f"{name!r} only knows when it sees the logits: use fixed_quota:order=planned, or the "
            "cache 'dkv'"
        )
    if needs.num_variants > 1 and settings.temperature > 0:
        raise ValueError(
            f"scheduler {name!r} compares variants of a row and is deterministic: temperature="
            f"{settings.temperature} must be 0"
        )
    if needs.num_variants > 1 and getattr(cache, "first_token", "feed") == "force":
        raise ValueError(f"scheduler {name!r} needs first_token='feed' of its cache")
    if model.spec.attention == "masks_last":
        _check_masks_last(model.name, scheduler, settings, needs)
    if settings.constraint is None and not has_constraint(settings.template):
        check_joint(settings)
    else:
        _check_constraint(model, settings, scheduler, cache, needs)
    if settings.verifier is not None:
        check_verifier(model, settings, scheduler, cache)
    return scheduler, cache


def _check_model(
    model: DenoisingModel, scheduler: Scheduler, cache: Cache, settings: Settings
) -> None:
    """Raises ValueError for a scheduler or a cache that a kind of model does not go with."""
    if isinstance(model.spec, UniformSpec):
        _check_uniform(model.name, scheduler, cache, settings)
    check_cache(model, cache)
    scheduler.check_model(model.spec)
    if settings.template is not None:
        check_scheduler(scheduler, scheduler.needs(settings.max_new_tokens, 1))
    needs = scheduler.needs(settings.max_new_tokens, 1)
    if needs.room:
        _check_growing(scheduler.summary()["name"], needs, cache, settings)
    if model.spec.blocks_from == "prompt" and settings.blocks_from == "zero":
        raise ValueError(
            f"blocks_from='zero': {model.name!r} was trained on blocks that are counted from the "
            "prompt's end; leave blocks_from out"
        )


def _check_uniform(name: str, scheduler: Scheduler, cache: Cache, settings: Settings) -> None:
    """Raises ValueError, by name, for what the sampler of the uniform process has no place for."""
    where = f"{name!r} is of the uniform process: columns that wait hold random tokens, no masks"
    if not isinstance(scheduler, Renoise):
        raise ValueError(
            f"{where}. Scheduler {scheduler.summary()['name']!r} fills masks: use 'renoise', with "
            "options such as 'renoise:24,entropy_bound=0.2', or leave scheduler out"
        )
    if cache != NoCache():
        raise ValueError(
            f"{where}, and its encoder keeps all finished text by itself. Cache "
            f"{cache.summary()['name']!r} has no part in it: use cache='none'"
        )
    usual, options = Settings(), ", ".join(one.name for one in fields(scheduler))
    for one in _UNIFORM_REFUSES:
        if getattr(settings, one) != getattr(usual, one):
            raise ValueError(
                f"{where}. {one}={getattr(settings, one)!r} has no part in its sampler, whose "
                f"options are those of scheduler 'renoise' ({options}): leave {one} out"
            )


# Settings that change how masks are filled.
_UNIFORM_REFUSES = (
    *("verifier", "guidance_scale", "temperature", "top_p", "top_k", "confidence"),
    *("min_new_tokens", "repetition_penalty", "logits_processors", "forbid_eos", "defer_eos"),
    *("forbidden_token_ids", "deferred_token_ids", "fixed", "infill", "blocks_from", "constraint"),
)


def check_cache(model: DenoisingModel, cache: Cache) -> None:
    """Raises ValueError where a cache cannot serve a model, whatever the scheduler."""
    cache.check(model.spec)
    check_rounded(model, cache.summary()["name"], cache.uses_store)
    if cache.uses_store and not model.supports_cache:
        raise ValueError(
            f"cache {cache.summary()['name']!r} needs a model with a K/V store, and {model.name!r} "
            "has none: use cache='none'"
        )
    if model.spec.attention == "masks_last" and not cache.masks_last:
        raise ValueError(
            f"{_MASKS_BEHIND.format(model.name)}, which cache {cache.summary()['name']!r} does not "
            "follow: use cache='streaming', which is exact, or 'none'"
        )
    if model.spec.attention == "encoder_decoder" and not cache.encodes:
        raise ValueError(
            f"{model.name!r} is an encoder and a decoder, whose keys cache "
            f"{cache.summary()['name']!r} would mix: use cache='encoder', which is exact, or 'none'"
        )


def caches_of(model: DenoisingModel) -> dict[str, str]:
    """Returns each cache with the reason why it cannot serve a model, "" where it can."""
    reasons = dict.fromkeys(caches.registry.names(), "")
    for name in reasons:
        try:
            check_cache(model, caches.registry.create(name))
        except ValueError as error:
            reasons[name] = str(error)
    return reasons


def verifiers_of(model: DenoisingModel) -> dict[str, tuple[str, ...]]:
    """Returns each verifier with the caches beside which it changes no token of a model."""
    return {name: tuple(_beside(model, name)) for name in verifiers.registry.names()}


def _beside(model: DenoisingModel, verifier: str) -> Iterator[str]:
    for name in caches.registry.names():
        try:
            check(model, Settings(cache=name, verifier=verifier))
        except ValueError:
            continue
        yield name


def _check_masks_last(model: str, scheduler: Scheduler, settings: Settings, needs: Needs) -> None:
    """Raises ValueError for what takes a column's attention to stay while its token changes."""
    reasons = {
        f"verifier {settings.verifier!r} runs drafts": settings.verifier is not None,
        f"scheduler {scheduler.summary()['name']!r} runs variants": needs.num_variants > 1,
        f"guidance_scale={settings.guidance_scale} runs the prompt as masks": (
            settings.guidance_scale > 0
        ),
    }
    behind = _MASKS_BEHIND.format(model)
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{behind}, and {reason} under one mask of attention: leave it out")


def _check_constraint(
    model: DenoisingModel, settings: Settings, scheduler: Scheduler, cache: Cache, needs: Needs
) -> None:
    """Raises ValueError for what would write tokens that no language was asked about."""
    if model.tokenizer is None:
        raise ValueError(
            f"constraint is about texts, and {model.name!r} has no tokenizer to spell them: load "
            "one, dllm.load(..., tokenizer=...)"
        )
    name = scheduler.summary()["name"]
    reasons = {
        "writes variants of a row that nobody has checked": needs.num_variants > 1,
        "cuts rows off before their text has ended": needs.shortens,
        "moves tokens, and not only replaces them": scheduler.moves_tokens,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"constraint refuses scheduler {name!r}: it {reason}; take one that fills or "
                "replaces single columns (threshold, fixed_quota, wino, ...)"
            )
    for one, reason in CONSTRAINT_REFUSES.items():
        if getattr(settings, one) != getattr(Settings(), one):
            raise ValueError(f"constraint refuses {one}={getattr(settings, one)!r}: {reason}")
    if settings.joint == "map" and settings.temperature > 0:
        raise ValueError(
            f"joint='map' takes the most probable text, and temperature={settings.temperature} "
            "draws one: take temperature=0 or joint='confidence'"
        )
    if methods := methods_by_token(settings.constraint):
        verified = settings.verifier is not None
        check_asking(scheduler, cache, verified, settings.joint, settings.at_eos)
        if "prefix" in methods:
            check_left_to_right(scheduler, settings.max_new_tokens, settings.block_length)


def _check_growing(name: str, needs: Needs, cache: Cache, settings: Settings) -> None:
    """Raises ValueError for what goes by columns, where a gap grows and text behind it moves."""
    where = f"scheduler {name!r} lets a gap grow and shrink, and the text behind it moves"
    if cache != NoCache():
        raise ValueError(
            f"{where}: cache {cache.summary()['name']!r} goes by columns; use cache='none'"
        )
    for option, usual in (("block_length", None), ("blocks_from", "prompt")):
        if option == "block_length" and needs.begin:
            continue  # what such a method decodes together
        if (given := getattr(settings, option)) != usual:
            raise ValueError(f"{where}, as one block: give {option}={usual!r}, not {given!r}")
