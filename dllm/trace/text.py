"""Text of single tokens, as it can be shown: halves of characters and control characters too."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase


BROKEN = "\ufffd"  # what decoders put where bytes are no character
_JOINERS = "\u200c\u200d"  # parts of emoji and of some scripts; harmless, unlike other formats
_HIDDEN = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
_LONGEST = 8  # tokens that are one character together


def visible(text: str) -> str:
    """Returns a text in which no character acts on its surroundings; twice is the same as once.

    Control characters become their pictures, those that turn the direction of writing their
    number. Line ends and tabs stay: whoever shows them knows how.
    """
    return "".join(_visible(character) for character in text)


def plural(number: int, noun: str) -> str:
    """Returns a number with its noun."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _visible(character: str) -> str:
    if character in "\n\t" or character in _JOINERS:
        return character
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def pieces_of(tokenizer: PreTrainedTokenizerBase | None, tokens: Iterable[int]) -> dict[int, str]:
    r"""Returns the text of each token on its own; bytes that are no character as `\xe2`."""
    return {token: visible(_piece(tokenizer, token)) for token in sorted(set(tokens))}


def _piece(tokenizer: PreTrainedTokenizerBase | None, token: int) -> str:
    text = "" if tokenizer is None else _decode(tokenizer, [token])
    if tokenizer is None or not text:  # ids that only pad the vocabulary have no text
        return f"⟨{token}⟩"
    raw = str(tokenizer.convert_ids_to_tokens(token))
    if BROKEN in text and all(character in _BYTES for character in raw):
        return bytes(_BYTES[character] for character in raw).decode(errors="backslashreplace")
    if BROKEN in text:
        return raw
    # Decoders of SentencePiece drop the space before a first word, and here each one is first.
    return f" {text}" if raw.startswith("\u2581") and text[0] != " " else text


def joined(
    tokenizer: PreTrainedTokenizerBase | None, tokens: Sequence[int]
) -> tuple[tuple[int, int, str], ...]:
    """Returns (start, end, text) of the columns whose tokens only together are characters."""
    found: list[tuple[int, int, str]] = []
    start = 0
    while tokenizer is not None and start < len(tokens):
        end = _end_of_character(tokenizer, tokens, start)
        if end > start + 1:
            found.append((start, end, visible(_decode(tokenizer, tokens[start:end]))))
        start = end
    return tuple(found)


def _end_of_character(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], start: int) -> int:
    if BROKEN not in _decode(tokenizer, tokens[start : start + 1]):
        return start + 1
    for end in range(start + 2, min(start + _LONGEST, len(tokens)) + 1):
        if BROKEN not in _decode(tokenizer, tokens[start:end]):
            return end
    return start + 1


def special_of(tokenizer: PreTrainedTokenizerBase | None, tokens: Iterable[int]) -> set[int]:
    """Returns which of the tokens are special, such as end tokens."""
    if tokenizer is None:
        return set()
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) & set(tokens)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(tokens), **options))


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte that each character stands for in byte-level vocabularies (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()
