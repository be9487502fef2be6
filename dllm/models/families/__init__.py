"""The hosted families, found by the first entry of `architectures` in a config.json.

Besides those in here: what installed packages declare under the name of an architecture (entry
points `dllm.families`), and what `dllm.load(..., family=...)` is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dllm.models.config import CheckpointError
from dllm.models.families import (
    a2d,
    dream,
    e2d2,
    fast_dllm_v2,
    illada,
    llada,
    llada2,
    llada_moe,
    nemotron,
    rnd1,
    sdar,
    stable_diffcoder,
    wedlm,
)
from dllm.models.families.family import Family
from dllm.registry import declared, nearest, own_object

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        llada.FAMILY,
        dream.FAMILY,
        dream.DIMPLE,
        illada.FAMILY,
        sdar.FAMILY,
        fast_dllm_v2.FAMILY,
        llada_moe.FAMILY,
        llada2.FAMILY,
        sdar.MOE_FAMILY,
        wedlm.FAMILY,
        e2d2.FAMILY,
        a2d.QWEN3,
        a2d.QWEN2,
        a2d.LLAMA,
        stable_diffcoder.FAMILY,
        stable_diffcoder.SEED_FAMILY,
        rnd1.FAMILY,
        rnd1.BASE_FAMILY,
        nemotron.FAMILY,
        nemotron.EARLIER_FAMILY,
        nemotron.QWEN_FAMILY,
    )
}

_GROUP = "dllm.families"  # of entry points
_HOSTED = frozenset(FAMILIES)

# What models were made from, and some kept: the class of the same tensors that is hosted.
_CAUSAL = {
    "Qwen2ForCausalLM": "A2DQwen2LMHeadModel",
    "Qwen3ForCausalLM": "A2DQwen3LMHeadModel",
    "LlamaForCausalLM": "A2DLlamaLMHeadModel",
}

_HEAD = re.compile(r"(ForCausalLM|ForMaskedLM|Model(LM)?|LM(HeadModel)?)$")


def find_family(config: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json.

    Not by `model_type`: LLaDA-MoE was released with the one of dense LLaDA.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise CheckpointError(
            f"config.json has architectures={architectures!r}; expected a list that starts with "
            f"one of: {', '.join(FAMILIES)}"
        )
    name = architectures[0]
    if not isinstance(name, str):
        raise CheckpointError(
            f"config.json has architectures={architectures!r}; expected the name of a class, one "
            f"of: {', '.join(FAMILIES)}"
        )
    if name not in FAMILIES and name in declared(_GROUP):
        add_family(name)
    if name in _CAUSAL and name not in FAMILIES:
        raise CheckpointError(
            f"architecture {name!r} is a class of transformers' that is causal, and says nothing "
            "of masks. ReFusion has it: it keeps keys in the order in which its slots were "
            "accepted, which is not hosted. Of one that was made bidirectional (Open-dCoder) "
            f"config.json does not say how it decodes: where its logits are not shifted, set "
            f'architectures to ["{_CAUSAL[name]}"] and add mask_token_id; where they are, to '
            '["DreamModel"] if q, k and v have biases'
        )
    if name not in FAMILIES:
        raise CheckpointError(
            f"unknown architecture {name!r}: {_likely(name)}. A model "
            "that returns logits can still be decoded without a cache: see dllm.models.wrap"
        )
    return FAMILIES[name]


def add_family(given: Family | str) -> Family:
    """Returns a family of another package or of the user, and knows it from here on.

    `given` is the family, its place as `module:NAME` or `path/file.py:NAME`, or the name of an
    entry point. Raises ValueError for what is none, and for an architecture that is hosted here.
    """
    found = own_object(given, _GROUP) if isinstance(given, str) else given
    if not isinstance(found, Family):
        there = "" if isinstance(given, Family) or found is None else f", which is {found!r}"
        raise ValueError(
            f"family={given!r}{there} is no dllm.models.families.Family: give one, or name it as "
            "module:NAME or path/file.py:NAME"
        )
    if found.architecture in _HOSTED and found is not FAMILIES[found.architecture]:
        raise ValueError(
            f"family={given!r} is of the architecture {found.architecture!r}, which dllm hosts "
            "itself: leave family= out, or give both another name"
        )
    FAMILIES[found.architecture] = found
    return found


def _likely(name: str) -> str:
    """Returns the known architectures as text, those of the same family under another head first.

    `DreamForCausalLM` is like `SDARForCausalLM` by its letters and like `DreamModel` by its name.
    """
    stems = {_HEAD.sub("", known).lower(): known for known in FAMILIES}
    same = stems.get(_HEAD.sub("", name).lower())
    if same is None:
        return nearest(name, FAMILIES)
    others = [known for known in FAMILIES if known != same]
    return f"did you mean {same!r}? known: {', '.join([same, *others])}"


__all__ = ["FAMILIES", "Family", "add_family", "find_family"]
