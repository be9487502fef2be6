"""The page of the hosted families: what each is, what goes with it, and how many runs hold it."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, cast

from dllm.cli.methods import MARKER, escape, markdown_table
from dllm.compatible import caches_of, verifiers_of
from dllm.decoding.memory_limits import readable
from dllm.models.config import ModelSpec
from dllm.models.cost import idle_parameters, narrow_bytes
from dllm.models.families import FAMILIES, Family
from dllm.models.loading.empty import empty_network
from dllm.models.model import HostedModel
from dllm.models.speed.rounded import GROUP
from dllm.models.transformer import Transformer
from dllm.settings import DEFAULT_BLOCK_LENGTH
from tests.golden.replay import KNOWN_DIFFERENCES, NOT_END_TO_END, STEPS, method_of
from tests.support import GOLDEN
from tests.support.sizes import SIZES

_OWN = "dllm.models.families."  # of modules


@dataclass(frozen=True)
class Recordings:
    """The recorded runs of the authors' code on models of one family."""

    recorded: int
    known: int  # of them not reproduced, for a reason that tests/golden/replay.py states
    logits: int  # models whose logits were recorded

    @property
    def text(self) -> str:
        """How many hold; a test replays each."""
        if not self.recorded:
            return "none"
        return f"{self.recorded - self.known} of {self.recorded}"


def page() -> str:
    """Returns an overview of all families and a section for each."""
    families = own_families()
    head = ("architecture", "models", "attention", "logits", "recorded runs that hold")
    rows = (
        (
            f"[`{family.architecture}`](#{family.architecture.lower()})",
            escape(about(family).partition(":")[0]),
            attention(family),
            logits(family),
            recordings(family.architecture).text,
        )
        for family in families
    )
    return "\n\n".join([MARKER, markdown_table(head, rows), *map(section, families)]) + "\n"


def own_families() -> list[Family]:
    """Returns the families that dllm hosts itself, not those that a user added."""
    return [one for one in FAMILIES.values() if one.network_of.__module__.startswith(_OWN)]


def section(family: Family) -> str:
    """Returns what there is to say of a family."""
    model, runs = described(family), recordings(family.architecture)
    reasons = caches_of(model)
    fit = [name for name, reason in reasons.items() if not reason]
    beside = {name: found for name, found in verifiers_of(model).items() if found}
    verified = [f"`{name}` with {', '.join(map(_code, found))}" for name, found in beside.items()]
    recorded = f"{runs.text} decode as recorded, pass by pass" if runs.recorded else "none"
    facts = {
        "attention": attention(family),
        "block": block(family),
        "logits": logits(family),
        "mask token": " or ".join(map(_code, family.mask_tokens))
        + ", for a config.json without `mask_token_id`",
        "most tokens": _code(family.max_length_key),
        "caches": ", ".join(map(_code, fit)),
        "verifiers": "; ".join(verified) or "none",
        "runs of the authors' code": recorded,
        "recorded logits": f"of {runs.logits} model(s)" if runs.logits else "none",
    }
    lines = "\n".join(f"- {name}: {text}" for name, text in facts.items())
    parts = [f"## {family.architecture}", escape(about(family)), lines, *sizes(family)]
    return "\n\n".join(parts)


def about(family: Family) -> str:
    """Returns the first sentence of the family's module."""
    return (sys.modules[family.network_of.__module__].__doc__ or "").partition("\n")[0]


def attention(family: Family) -> str:
    """Returns how columns see each other."""
    return family.attention.replace("_", "-")


def logits(family: Family) -> str:
    """Returns which column logits are of."""
    return "of the next column" if family.logit_shift else "of their own column"


def block(family: Family) -> str:
    """Returns where the length of a block comes from."""
    usual = "" if family.block_length is None else f"{family.block_length}"
    if family.block_length_key is None:
        return f"{usual}, the authors' window" if usual else "as a call says"
    return f"`{family.block_length_key}` of config.json" + (usual and f", else {usual}")


def described(family: Family) -> HostedModel:
    """Returns a model of a family without a network: checks of parts read its spec alone."""
    names = {field.name for field in fields(ModelSpec)} & {field.name for field in fields(Family)}
    shared: dict[str, Any] = {name: getattr(family, name) for name in names}
    if family.block_length_key is not None and shared["block_length"] is None:
        shared["block_length"] = DEFAULT_BLOCK_LENGTH
    if shared["attention"] != "block_causal":  # where blocks are counted from is of such models
        shared["blocks_from"] = "zero"
    ids: dict[str, Any] = {"mask_token_id": 2, "eos_token_ids": (1,), "pad_token_id": 1}
    spec = ModelSpec(vocab_size=3, max_length=1024, **ids, **shared)
    return HostedModel(family.architecture, cast("Transformer", None), spec)


def sizes(family: Family) -> Iterator[str]:
    """Yields a table of the published sizes whose shapes are known here."""
    known = {name: one for name, one in SIZES.items() if one.architecture == family.architecture}
    head = (
        "weights",
        "parameters",
        "active",
        "bfloat16",
        "layers in int8 or fp8",
        "layers in int4",
    )
    rows = []
    for name, one in known.items():
        network = empty_network(one.network)
        total = sum(weight.numel() for weight in network.parameters())
        active = total - idle_parameters(one.network)
        memory = [2 * total, narrow_bytes(network, 8), narrow_bytes(network, 4, GROUP)]
        rows.append((name, _billions(total), _billions(active), *map(readable, memory)))
    if rows:
        yield markdown_table(head, rows)


@cache
def _recordings() -> Mapping[str, Recordings]:
    """Returns the recordings of each architecture, counted in the files that tests replay."""
    architectures = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["architectures"][0]
        for path in sorted((GOLDEN / "models").glob("*/config.json"))
    }
    found: dict[str, list[bool]] = defaultdict(list)  # whether each is a known difference
    for case in _cases():
        if case["method"] not in NOT_END_TO_END and method_of(case):
            found[architectures[case["model"]]].append(case["id"] in KNOWN_DIFFERENCES)
    with_logits = Counter(
        architecture
        for name, architecture in architectures.items()
        if (GOLDEN / "models" / name / "ref_logits.safetensors").exists()
    )
    return {
        name: Recordings(len(found[name]), sum(found[name]), with_logits[name])
        for name in {*architectures.values()}
    }


def _cases() -> Iterable[dict[str, Any]]:
    for path in sorted((GOLDEN / "cases").glob("*.json")):
        if path.stem not in STEPS:
            yield from json.loads(path.read_text(encoding="utf-8"))["cases"]


def recordings(architecture: str) -> Recordings:
    """Returns the recordings of an architecture, of which there may be none."""
    return _recordings().get(architecture, Recordings(0, 0, 0))


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} billion"


def _code(text: str) -> str:
    return f"`{text}`"
