"""The bytes that each token of a tokenizer stands for, read off the tokenizer's own decoder."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dllm.reading import parse_json

SPACE_MARK = "\u2581"  # of sentencepiece
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer(Protocol):
    """A fast tokenizer of transformers."""

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of the library `tokenizers`."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text."""

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up rows."""


@dataclass(frozen=True)
class Ends:
    """Tokens that end a text, and what may stand behind it."""

    eos_token_ids: tuple[int, ...]
    pad_token_ids: tuple[int, ...] = ()  # after an end, beside ends
    vocab_size: int | None = None  # of the model's logits, where it is larger than the tokenizer's

    def __post_init__(self) -> None:
        for name in ("eos_token_ids", "pad_token_ids"):
            if any(token < 0 for token in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be token ids, from 0")


def ends_of(tokenizer: Tokenizer) -> Ends:
    """Returns the ends that a tokenizer names."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return Ends(() if eos is None else (eos,), () if pad is None else (pad,))


@dataclass(frozen=True, eq=False)
class Spellings:
    """The bytes of all tokens, one after the other."""

    text: NDArray[np.uint8]
    begins: NDArray[np.int64]  # (V + 1,) where each token begins; without bytes it is never chosen
    drops_space: bool  # whether a text loses a space that it begins with

    def of(self, token: int) -> bytes:
        """Returns the bytes of a token, none of one that stands for no text."""
        return self.text[self.begins[token] : self.begins[token + 1]].tobytes()


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer's tokens; their bytes are read when they are asked for."""

    digest: str  # of all that the tokenizer is made of
    tokenizer: Any  # of the library `tokenizers`
    size: int

    @cached_property
    def spellings(self) -> Spellings:
        """The bytes of all tokens; added tokens, special ones among them, have none.

        Raises ValueError for a decoder whose texts are not the bytes of tokens in a row.
        """
        return _spellings(self.tokenizer)


_KNOWN: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Returns the tokens of a tokenizer, which is read once as long as no token is added.

    Raises ValueError for what has no fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{type(tokenizer).__name__} is no fast tokenizer, and a constraint needs the bytes of "
            "its tokens: load it with a tokenizer.json"
        )
    size = backend.get_vocab_size(with_added_tokens=True)
    known = _KNOWN.get(tokenizer)
    if known is None or known.tokenizer is not backend or known.size != size:
        # Texts of a tokenizer depend on nothing that is not in this one.
        known = Vocabulary(hashlib.sha256(backend.to_str().encode()).hexdigest(), backend, size)
        _KNOWN[tokenizer] = known
    return known


def _spellings(backend: Any) -> Spellings:
    style = _style_of(backend)
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=False)
    size = 1 + max([*vocabulary.values(), *added], default=-1)
    found = [b""] * size
    for token, number in vocabulary.items():
        if number not in added:
            found[number] = style.bytes_of(token)
    begins = np.zeros(size + 1, dtype=np.int64)
    np.cumsum([len(one) for one in found], out=begins[1:])
    text = np.frombuffer(b"".join(found), dtype=np.uint8)
    return Spellings(text, begins, style.drops_space)


@dataclass(frozen=True)
class _Style:
    """How a decoder makes text of tokens."""

    byte_level: bool = False
    space_mark: str | None = None
    byte_tokens: bool = False
    drops_space: bool = False

    def bytes_of(self, token: str) -> bytes:
        if self.byte_level:
            try:
                return bytes(_BYTES_OF[one] for one in token)
            except KeyError:  # the decoder takes such a token as it stands
                return token.encode()
        if self.byte_tokens and (found := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(found[1], 16)])
        if self.space_mark is not None:
            token = token.replace(self.space_mark, " ")
        return token.encode()


def _bytes_of_characters() -> dict[str, int]:
    """Returns the byte of each character that GPT-2 writes bytes as (`bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    written = {chr(byte): byte for byte in shown}
    return written | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_BYTES_OF = _bytes_of_characters()


def _style_of(backend: Any) -> _Style:
    """Returns what a tokenizer's decoder does; raises ValueError that names what is not known."""
    if backend.decoder is None:
        raise ValueError("the tokenizer has no decoder, and puts a space between all tokens")
    # Of what the decoder is made, as tokenizer.json says it.
    written = parse_json(backend.decoder.__getstate__(), "the tokenizer's decoder")
    style: dict[str, Any] = {}
    for step in written["decoders"] if written["type"] == "Sequence" else [written]:
        style |= _step(step)
    return _Style(**style)


def _step(step: dict[str, Any]) -> dict[str, Any]:
    kind = step["type"]
    if kind == "Fuse":
        return {}
    if kind == "ByteLevel":
        return {"byte_level": True}
    if kind == "ByteFallback":
        return {"byte_tokens": True}
    if kind == "Replace" and step["pattern"] == {"String": SPACE_MARK} and step["content"] == " ":
        return {"space_mark": SPACE_MARK}
    if kind == "Metaspace":
        drops = step.get("prepend_scheme", "always") != "never"
        return {"space_mark": step["replacement"], "drops_space": drops}
    if kind == "Strip" and (step["content"], step["start"], step["stop"]) == (" ", 1, 0):
        return {"drops_space": True}
    raise ValueError(
        f"the tokenizer's decoder {kind} makes text in a way that a constraint cannot follow: "
        "byte-level, sentencepiece and plain tokens are known"
    )
