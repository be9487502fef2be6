"""What verifiers do not go with, and why: models, schedulers, caches and settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from dllm import schedulers
from dllm.cache import Cache
from dllm.cache.block_causal import BlockCausalCache
from dllm.cache.none import NoCache
from dllm.decoding.speculation import verifiers
from dllm.decoding.speculation.verifiers import StepVerifier, Verifier
from dllm.decoding.speculation.verifiers.linear import Linear
from dllm.models.model import DenoisingModel
from dllm.schedulers import Scheduler
from dllm.state.noise import CounterNoise

# Settings that a token drafted behind others would have to be asked about once more.
_LINEAR_REFUSES = {
    "guidance_scale": "drafts and predictions are the model's own, without a guided half",
    "repetition_penalty": "a token would be weighed before those in front of it are certain",
    "logits_processors": "they would be shown a row without the tokens that are being verified",
    "constraint": "what a column may hold is known once the tokens before it are certain",
    "template": "what a column may hold is known once the tokens before it are certain",
}


def check_verifier(
    model: DenoisingModel, settings: Any, scheduler: Scheduler, cache: Cache
) -> Verifier:
    """Returns the verifier of settings; raises ValueError where outputs might change."""
    verifier = verifiers.registry.create(settings.verifier)
    name = f"verifier {verifier.summary()['name']!r}"
    if settings.noise is not None and not isinstance(settings.noise, CounterNoise):
        raise ValueError(
            f"{name} looks several steps ahead, and noise={type(settings.noise).__name__} may "
            "depend on the order in which it is drawn: give seed instead"
        )
    if isinstance(verifier, Linear):
        _check_linear(name, verifier, model, settings)
        _check_beside_linear(name, settings, scheduler, cache)
    elif isinstance(verifier, StepVerifier):
        _check_scheduler(name, scheduler, cache, settings)
        _check_cache(name, cache)
        _check_guard(verifier, settings, cache)
        if verifier.execution == "tree":
            _check_tree(model)
    else:
        raise ValueError(f"{name} is neither a StepVerifier nor Linear: derive it from one of them")
    return verifier


def _check_linear(name: str, verifier: Linear, model: DenoisingModel, settings: Any) -> None:
    """Raises ValueError for models and settings that left to right decoding has no place for."""
    if model.spec.attention != "causal_context":
        raise ValueError(
            f"{name} needs a model that predicts the next token causally and fills a block both "
            f"ways (Nemotron-Labs-Diffusion), and {model.name!r} has attention="
            f"{model.spec.attention!r}: take verifier='ssd', which drafts schedule steps"
        )
    usual = _usual(settings)
    for option, reason in _LINEAR_REFUSES.items():
        if (given := getattr(settings, option)) != usual[option]:
            said = f"={given!r}" if isinstance(given, float) else ""
            raise ValueError(f"{name} refuses {option}{said}: {reason}; leave it out")
    if settings.block_length not in (None, verifier.block):
        raise ValueError(
            f"block_length={settings.block_length} and block={verifier.block} of {name} both say "
            "how many columns a pass drafts: leave block_length out"
        )


def _check_beside_linear(name: str, settings: Any, scheduler: Scheduler, cache: Cache) -> None:
    """Raises ValueError for a scheduler, and for a cache that keeps what is not causal."""
    if scheduler != schedulers.registry.create(_usual(settings)["scheduler"]):
        raise ValueError(
            f"{name} keeps the tokens that the model itself predicts one after the other, and no "
            f"scheduler chooses any: leave scheduler {scheduler.summary()['name']!r} out"
        )
    if cache != NoCache() and not isinstance(cache, BlockCausalCache):
        raise ValueError(
            f"{name} refuses cache {cache.summary()['name']!r}: it stores the keys of causal "
            "passes, or nothing: take 'block_causal' or 'none', with its options left out"
        )


def _usual(settings: Any) -> dict[str, Any]:
    """Returns the settings that nobody has to give."""
    return {one.name: one.default for one in fields(settings)}


def _check_guard(verifier: StepVerifier, settings: Any, cache: Cache) -> None:
    """Raises ValueError for what a guarded pass, which may take no step, does not go with."""
    if verifier.margin_guard and settings.temperature > 0:
        raise ValueError(
            f"margin_guard={verifier.margin_guard} compares probabilities, which do not decide at "
            f"temperature={settings.temperature}: leave one of them out"
        )
    if verifier.margin_guard and settings.at_eos == "truncate" and cache.uses_store:
        raise ValueError(
            f"margin_guard={verifier.margin_guard} adds passes that take no step, and with a cache "
            "at_eos='truncate' goes by passes: take at_eos='stop' or leave the guard out"
        )


def _check_tree(model: DenoisingModel) -> None:
    """Raises ValueError where the drafts of a row cannot stand behind one another."""
    if model.spec.attention == "encoder_decoder":
        raise ValueError(
            f"execution='tree' feeds drafts behind one stack, and {model.name!r} is an encoder "
            "and a decoder: take 'batch'"
        )
    if not model.supports_cache:
        raise ValueError(
            "execution='tree' hides keys from queries, which the wrapped module "
            f"{model.name!r} cannot: load the checkpoint with dllm.load, or take 'batch'"
        )


def _check_scheduler(name: str, scheduler: Scheduler, cache: Cache, settings: Any) -> None:
    asked = scheduler.summary()["name"]
    slots = settings.max_new_tokens
    needs = scheduler.needs(slots, settings.block_length or slots)
    reasons = {
        "revises committed tokens, and a draft only adds to them": scheduler.can_revise,
        "feeds every column a second time": needs.shadow,
        "compares variants of a row in passes of its own": needs.num_variants > 1,
        "carries state from one step to the next": not scheduler.stateless,
        "cuts rows off, and a cache keeps what was cut as some pass left it": (
            needs.shortens and cache.uses_store
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
    if not cache.replayable:
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
