"""Looks at a checkpoint and whether it suits a device; no weight is loaded, nothing downloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import transformers
from huggingface_hub import try_to_load_from_cache

from dllm.compatible import caches_of, verifiers_of
from dllm.decoding.memory_limits import available, readable
from dllm.doctor.finding import Finding, failure, ok, warning
from dllm.models.config import CheckpointError
from dllm.models.cost import idle_parameters, narrow_bytes, network_cost
from dllm.models.diffusion_gemma import ARCHITECTURE, TESTED, spec_of
from dllm.models.loading import read_adapter
from dllm.models.loading.checkpoint import Checkpoint
from dllm.models.loading.empty import empty_network
from dllm.models.loading.folder import HUB_ID, Source, find_folder
from dllm.models.loading.tokenizer import render_chat
from dllm.models.loading.weights import Weights
from dllm.models.memory import CROWDED
from dllm.models.model import HostedModel
from dllm.models.speed import ways_of
from dllm.models.speed.choice import choose, subject_of, try_packed
from dllm.models.speed.machine import machine_of, multiplies
from dllm.models.speed.rounded import GROUP, Rounding
from dllm.models.speed.widened import NARROW
from dllm.models.transformer import Transformer
from dllm.settings import DEFAULT_BLOCK_LENGTH, resolve

CANVAS = 1024  # tokens, prompt and answer, for which batches are estimated


class LocalCheckpoint(Checkpoint):
    """A checkpoint that is on this machine, and its network without memory."""

    @cached_property
    def root(self) -> Path:
        """Its folder, or the copy of a hub id that is there already; nothing is downloaded."""
        path = Path(self.name).expanduser()
        if self.name == "tiny" or path.exists() or not HUB_ID.fullmatch(self.name):
            return find_folder(self.name, self.source)
        cached = try_to_load_from_cache(self.name, "config.json", revision=self.source.revision)
        if not isinstance(cached, str):
            raise CheckpointError(
                f"there is no folder {self.name!r}, and no hub repository of that name was "
                "downloaded yet, which loading it does"
            )
        return Path(cached).parent

    @property
    def elsewhere(self) -> Source:
        """The same, on this machine alone."""
        return replace(super().elsewhere, local_files_only=True)

    @property
    def is_foreign(self) -> bool:
        """Whether transformers' own class runs it; not where its config.json cannot be read."""
        try:
            return self.is_diffusion_gemma
        except CheckpointError:  # the checks of all others say why
            return False

    @cached_property
    def empty(self) -> Transformer:
        """Its network without memory."""
        return empty_network(self.network, self.rounding)

    def hosted(self) -> HostedModel:
        """Returns the model of it without memory, for the parts to say whether they serve it."""
        return HostedModel(self.name, self.empty.to(self.dtype), self.spec)

    @property
    def num_parameters(self) -> int:
        """How many numbers its network holds, a tied head counted once."""
        plain = self.empty if self.rounding is None else empty_network(self.network)
        return sum(math.prod(weight.shape) for weight in plain.parameters())

    @property
    def weight_bytes(self) -> int:
        """The memory of its weights."""
        return subject_of(self.empty, self.dtype, num_devices=1).weight_bytes


def folder(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields where it is."""
    yield ok("checkpoint", str(checkpoint.folder))


def architecture(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields whether the network can be hosted."""
    network, family = checkpoint.network, checkpoint.family
    shape = f"{network.num_layers} layers of {network.hidden_size}"
    if network.decoder is not None:
        whose = "the last of them" if network.decoder.shared else "its own"
        shape += f" and a decoder of {network.decoder.num_layers} layers, {whose}"
    shape += f", {checkpoint.num_parameters:,} parameters"
    idle = idle_parameters(network)
    if network.experts is not None:
        experts = network.experts
        shape += (
            f", {checkpoint.num_parameters - idle:,} of them active in a token "
            f"({experts.num_active} of {experts.num_experts} experts)"
        )
    shifted = ", logits shifted by one" if family.logit_shift else ""
    attention = family.read_attention(checkpoint.config)
    attends = f"{attention.replace('_', '-')} attention{shifted}"
    yield ok("architecture", f"{family.architecture}: {shape}, {attends}")


def foreign(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields whether transformers can run what has no family here."""
    spec, version = spec_of(checkpoint.config, checkpoint.eos), transformers.__version__
    ends = ", ".join(map(str, spec.eos_token_ids))
    text = f"{ARCHITECTURE}: canvases of {spec.block_length} columns, no mask, end {ends}; "
    text += f"at most {spec.max_length} tokens"
    if hasattr(transformers, ARCHITECTURE):
        yield ok("architecture", f"{text}; run by transformers {version}")
    else:
        way = f"pip install 'transformers>={TESTED}'"
        yield failure("architecture", f"{text}; transformers {version} does not have it", way)


def tokenizer(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields the tokenizer, whose ids the network must know."""
    known = checkpoint.tokenizer
    if known is None:
        text = "none: prompts must be token ids, and answers are no text"
        yield warning("tokenizer", text, "put tokenizer.json beside config.json")
        return
    rows = checkpoint.network.vocab_size
    largest = max(known.get_vocab().values(), default=-1)
    text = f"{len(known)} tokens for a vocabulary of {rows}"
    if largest >= rows:
        text = f"{text}: id {largest} is outside of it"
        yield failure("tokenizer", text, "take the tokenizer of this very checkpoint")
    else:
        yield ok("tokenizer", text)


def chat_template(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields whether a prompt can be messages."""
    known = checkpoint.tokenizer
    if known is not None and known.chat_template:
        message = [{"role": "user", "content": "hello"}]
        render_chat(known, message)
        yield ok("chat template", "renders a message")
    elif known is not None:
        text = "none: --chat, `dllm chat` and messages will be refused"
        yield warning("chat template", text, "give plain text, or add chat_template.jinja")


def special_tokens(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields the mask and end tokens."""
    spec = checkpoint.spec
    ends = ", ".join(map(str, spec.eos_token_ids))
    limit = f"at most {spec.max_length} tokens"
    yield ok("special tokens", f"mask {spec.mask_token_id}, end {ends}; {limit}")


def defaults(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields the settings that the checkpoint recommends."""
    settings = resolve(checkpoint.generation, None, {})
    yield ok("defaults", f"{settings.max_new_tokens} new tokens, scheduler {settings.scheduler}")


def files(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields whether all weights are there, whole, and those of the architecture."""
    stored, names = checkpoint.stored, checkpoint.family.names
    Weights(names, stored).check(checkpoint.empty, compare=False)  # to compare twins reads both
    num_files = len({part.file for part in stored.values()})
    yield ok("weights", f"{len(stored)} tensors in {num_files} file(s), none missing or cut off")


def adapter(checkpoint: LocalCheckpoint, given: str) -> Iterator[Finding]:
    """Yields whether an adapter can be merged into the weights."""
    lora = read_adapter(given, Source(local_files_only=True), checkpoint.name)
    Weights(checkpoint.family.names, checkpoint.stored, lora).check(checkpoint.empty)
    yield ok("adapter", f"fits, and changes {len(lora.stored) // 2} weights: {lora.folder}")


def size(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields whether the weights fit the device."""
    needed, free = checkpoint.weight_bytes, available(where)
    text = f"{readable(needed)} in {_name(checkpoint.dtype)}"
    if free is None:
        yield ok("size", f"{text}; the free memory of {where} is not known")
        return
    text = f"{text}, {readable(free)} free on {where}"
    if needed > free:
        ways = "take a narrower --dtype, a larger device, or device_map='auto' in dllm.load"
        yield failure("size", f"{text}: the weights do not fit", ways)
    elif needed > CROWDED * free:
        yield warning("size", f"{text}: little is left to decode with", "take a narrower --dtype")
    else:
        yield ok("size", text)


def narrower(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields the memory of the weights in bfloat16, and with layers in 8 and in 4 bits."""
    if checkpoint.rounding is not None:
        text = f"{readable(checkpoint.weight_bytes)}, layers in {checkpoint.rounding.way} already"
        yield ok("memory of weights", text)
        return
    text, ways = readable(2 * checkpoint.num_parameters), ways_of(checkpoint.hosted(), where)
    parts = [f"{text} in bfloat16"]
    for one in (Rounding(8), Rounding(8, floating=True), Rounding(4, GROUP)):
        note = "" if ways.get(one.kind) == "" else f' (speed="{one.kind}" is not there for it)'
        size = narrow_bytes(checkpoint.empty, one.bits, one.group_size)
        parts.append(f"{readable(size)} in {one.kind}{note}")
    yield ok("memory of weights", ", ".join(parts))


def cache_policies(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields the caches that can serve the model, and the others."""
    yield ok("caches", _listed(caches_of(checkpoint.hosted())))


def verifying(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields the verifiers, with the caches beside which they change no token."""
    found = verifiers_of(checkpoint.hosted())
    fit = [f"{name} with {', '.join(beside)}" for name, beside in found.items() if beside]
    yield ok("verifiers", "; ".join(fit) or f"none; not {', '.join(found)}")


def speed(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields the ways to faster passes on the device, and the reason of each that is refused."""
    reasons = ways_of(checkpoint.hosted(), where)
    yield ok("speed", _listed(reasons))
    yield from (ok(f"speed {way}", f"refused: {why}") for way, why in reasons.items() if why)


def auto(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields the ways that loading takes by itself, and why others are left out."""
    subject = subject_of(checkpoint.empty, checkpoint.dtype, num_devices=1)
    choice = choose(machine_of(where), subject, try_packed)
    yield ok("speed='auto'", f"takes {choice.text}")
    for way, why in choice.left.items() if choice.taken else ():
        yield ok("speed='auto'", f"leaves {way} out: {why}")


def _listed(reasons: Mapping[str, str]) -> str:
    """Returns what is fit, and what is refused for some reason."""
    fit = [name for name, reason in reasons.items() if not reason]
    others = [name for name, reason in reasons.items() if reason]
    return f"{', '.join(fit) or 'none'}{'; not ' * bool(others)}{', '.join(others)}"


def dtype(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields whether the device is fast with the checkpoint's dtype."""
    own, name = checkpoint.dtype, _name(checkpoint.dtype)
    native = multiplies(where, own) if own in NARROW else None
    if native is False and where.type == "cpu":
        text = (
            f"this CPU has no {name} arithmetic: speed='auto' widens weights inside products, in "
            "about the time of float32 and half its memory"
        )
        yield ok("dtype", text)
    elif native is False:
        text = f"{name} is emulated on this {where.type}, which takes several times as long"
        yield warning("dtype", text, "give --dtype float32")
    elif own in (torch.float32, torch.float64) and where.type == "cuda":
        text = f"{name} takes at least twice the memory and time of bfloat16"
        yield warning("dtype", text, "give --dtype bfloat16")
    else:
        yield ok("dtype", name)


def batch(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields how many rows are estimated to fit beside the weights, without and with a cache."""
    free = available(where)
    if free is None or checkpoint.weight_bytes > free:
        return
    cost = network_cost(checkpoint.network, checkpoint.dtype.itemsize)
    columns = min(CANVAS, checkpoint.family.read_max_length(checkpoint.described))
    block = checkpoint.family.read_block_length(checkpoint.described) or DEFAULT_BLOCK_LENGTH
    left = free - checkpoint.weight_bytes
    plain, cached = (left // cost.row_bytes(n, columns, block) for n in (0, columns))
    if plain:
        text = f"about {plain} rows of {columns} tokens fit by estimate, {cached} with a cache"
        yield ok("batch", text)
    else:
        text = f"by estimate not even one row of {columns} tokens fits beside the weights"
        yield failure("batch", text, "take a narrower --dtype or shorter prompts")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
