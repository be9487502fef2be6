"""Looks at a checkpoint: its architecture, its tokenizer, its settings, its files."""

from __future__ import annotations

from collections.abc import Iterator

from dllm.doctor.checkpoint import LocalCheckpoint
from dllm.doctor.finding import Finding, failure, ok, warning
from dllm.models.loading.weights import Weights
from dllm.settings import resolve


def folder(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields where it is."""
    yield ok("checkpoint", str(checkpoint.folder))


def architecture(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields whether the network can be hosted."""
    network, family = checkpoint.network, checkpoint.family
    count = f"{checkpoint.num_parameters:,} parameters"
    shape = f"{network.num_layers} layers of {network.hidden_size}, {count}"
    shifted = ", logits shifted by one" if family.logit_shift else ""
    attends = f"{family.attention.replace('_', '-')} attention{shifted}"
    yield ok("architecture", f"{family.architecture}: {shape}, {attends}")


def tokenizer(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields the tokenizer, whose ids the network must know."""
    found = checkpoint.tokenizer
    if found is None:
        text = "none: prompts must be token ids, and answers are no text"
        yield warning("tokenizer", text, "put tokenizer.json beside config.json")
        return
    rows = checkpoint.network.vocab_size
    largest = max(found.get_vocab().values(), default=-1)
    text = f"{len(found)} tokens for a vocabulary of {rows}"
    if largest >= rows:
        text = f"{text}: id {largest} is outside of it"
        yield failure("tokenizer", text, "take the tokenizer of this very checkpoint")
    else:
        yield ok("tokenizer", text)


def chat_template(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields whether messages can be given."""
    found = checkpoint.tokenizer
    if found is None:
        return
    if not found.chat_template:
        text = "none: --chat, `dllm chat` and messages will be refused"
        yield warning("chat template", text, "give plain text, or add chat_template.jinja")
        return
    message = [{"role": "user", "content": "hello"}]
    found.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    yield ok("chat template", "renders a message")


def special_tokens(checkpoint: LocalCheckpoint) -> Iterator[Finding]:
    """Yields the mask and end tokens."""
    spec = checkpoint.spec
    outside = [token for token in spec.eos_token_ids if not 0 <= token < spec.vocab_size]
    if outside:
        text = f"end token {outside[0]} is outside the vocabulary of {spec.vocab_size}"
        yield failure("special tokens", text, "mend eos_token_id in config.json")
        return
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
    if checkpoint.network.tie_embeddings:  # to compare them would read both
        stored = {name: part for name, part in stored.items() if name != names.of("head.weight")}
    Weights(names, stored).check(checkpoint.empty)
    num_files = len({part.file for part in stored.values()})
    yield ok("weights", f"{len(stored)} tensors in {num_files} file(s), none missing or cut off")
