"""Which settings a verifier leaves unchanged, and why it refuses the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm.cache import Cache
from dllm.cache.block_causal import BlockCausalCache
from dllm.cache.dual import DualCache
from dllm.cache.none import NoCache
from dllm.cache.prefix import PrefixCache
from dllm.decoding.speculation import verifiers
from dllm.decoding.speculation.verifiers import Verifier
from dllm.schedulers import Scheduler
from dllm.state.noise import CounterNoise

if TYPE_CHECKING:  # settings name the verifier
    from dllm.settings import Settings

# In all of these a pass within a block is a function of the canvas and of the block's refresh.
LOSSLESS = (NoCache, PrefixCache, DualCache, BlockCausalCache)


def check_verifier(settings: Settings, scheduler: Scheduler, cache: Cache) -> Verifier:
    """Returns the verifier of settings; raises ValueError where outputs might change."""
    assert settings.verifier is not None
    verifier = verifiers.registry.create(settings.verifier)
    name = f"verifier {verifier.summary()['name']!r}"
    _check_scheduler(name, scheduler, cache, settings)
    _check_cache(name, cache)
    if verifier.margin_guard and settings.temperature > 0:
        raise ValueError(
            f"margin_guard={verifier.margin_guard} compares probabilities, which do not decide at "
            f"temperature={settings.temperature}: leave one of them out"
        )
    if verifier.margin_guard and settings.at_eos == "truncate" and cache.stores:
        raise ValueError(
            f"margin_guard={verifier.margin_guard} adds passes that take no step, and with a cache "
            "at_eos='truncate' goes by passes: take at_eos='stop' or leave the guard out"
        )
    if settings.noise is not None and not isinstance(settings.noise, CounterNoise):
        raise ValueError(
            f"{name} looks several steps ahead, and noise={type(settings.noise).__name__} may "
            "depend on the order in which it is drawn: give seed instead"
        )
    return verifier


def _check_scheduler(name: str, scheduler: Scheduler, cache: Cache, settings: Settings) -> None:
    asked = scheduler.summary()["name"]
    block = settings.block_length or settings.max_new_tokens
    needs = scheduler.needs(settings.max_new_tokens, block)
    reasons = {
        "revises committed tokens, and a draft only adds to them": scheduler.can_revise,
        "feeds every column a second time": needs.shadow,
        "compares variants of a row in passes of its own": needs.branches > 1,
        "carries state from one step to the next": not scheduler.stateless,
        "cuts rows off, and a cache keeps what was cut as some pass left it": (
            needs.shortens and cache.stores
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"{name} refuses scheduler {asked!r}: it {reason}; take one that decides by the "
                "logits alone (fixed_quota, threshold, factor, ...), or leave the verifier out"
            )


def _check_cache(name: str, cache: Cache) -> None:
    asked = cache.summary()["name"]
    if not isinstance(cache, LOSSLESS):
        raise ValueError(
            f"{name} refuses cache {asked!r}: what it holds depends on the forwards before, of "
            "which there are fewer with a verifier, so outputs would change; known to leave them "
            "as they are: none, prefix, dual, block_causal"
        )
    if getattr(cache, "refresh_every", None) is not None:
        raise ValueError(
            f"{name} refuses refresh_every={cache.summary()['refresh_every']} of cache {asked!r}: "
            "a refresh within a block would see another canvas; leave it out"
        )
