"""Which scheduler, cache, verifier and model go together."""

from __future__ import annotations

from dllm import cache as caches
from dllm import schedulers
from dllm.cache import Cache
from dllm.decoding.speculation.check import check_verifier
from dllm.models.model import DenoisingModel
from dllm.schedulers import Scheduler
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings


def check(model: DenoisingModel, settings: Settings) -> tuple[Scheduler, Cache]:
    """Returns the scheduler and cache of settings; raises ValueError if they do not go together."""
    scheduler = schedulers.registry.create(settings.scheduler)
    cache = caches.registry.create(settings.cache)
    cache.check(model.spec)
    scheduler.check_model(model.spec)
    name = scheduler.summary()["name"]
    needs = scheduler.needs(settings.max_new_tokens, settings.block_length or DEFAULT_BLOCK_LENGTH)
    if cache.stores and not model.supports_cache:
        raise ValueError(
            f"cache {cache.summary()['name']!r} needs a model with a K/V store, and {model.name!r} "
            "has none: use cache='none'"
        )
    if needs.shadow and not model.supports_cache:
        raise ValueError(
            f"scheduler {name!r} feeds columns twice, which the wrapped module {model.name!r} "
            "cannot: load the checkpoint with dllm.load"
        )
    if cache.foresees and not scheduler.announces:
        raise ValueError(
            f"cache {cache.summary()['name']!r} feeds what the next step commits, which scheduler "
            f"{name!r} only knows when it sees the logits: use fixed_quota:order=planned, or the "
            "cache 'dkv'"
        )
    if needs.branches > 1 and settings.temperature > 0:
        raise ValueError(
            f"scheduler {name!r} compares variants of a row and is deterministic: temperature="
            f"{settings.temperature} must be 0"
        )
    if needs.branches > 1 and getattr(cache, "first_token", "feed") == "force":
        raise ValueError(f"scheduler {name!r} needs first_token='feed' of its cache")
    if settings.verifier is not None:
        verifier = check_verifier(settings, scheduler, cache)
        if verifier.execution == "tree" and not model.supports_cache:
            raise ValueError(
                "execution='tree' hides keys from queries, which the wrapped module "
                f"{model.name!r} cannot: load the checkpoint with dllm.load, or take 'batch'"
            )
    return scheduler, cache
