"""Tokenizers of each style, small and with tokens of one's choice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ("<mask>", "<eos>", "<pad>")


def byte_level(texts: Sequence[bytes]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer as Qwen's and LLaDA's, of the 256 bytes, texts and `SPECIAL` behind."""
    written = bytes_to_unicode()
    tokens = ["".join(written[byte] for byte in text) for text in texts]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys([*written.values(), *tokens]))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return finished(backend)


def sentencepiece(
    tokens: Sequence[str], decoder: decoders.Decoder | None = None
) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of sentencepiece's style, with 256 byte tokens and `SPECIAL`."""
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys([*bytes_of, *tokens]))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoder or decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return finished(backend)


def plain(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are texts as they stand, with `SPECIAL` behind."""
    backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, tokens[0]))
    backend.decoder = decoders.Fuse()
    return finished(backend)


def finished(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of transformers with special tokens and an added one."""
    backend.add_special_tokens([AddedToken(one, special=True) for one in SPECIAL])
    backend.add_tokens([AddedToken("<added>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="<mask>", eos_token="<eos>", pad_token="<pad>"
    )


def large_byte_level(size: int, seed: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer of about `size` tokens, as long and as varied as real ones.

    Words of letters with and without a space, digits, runs of spaces and punctuation, and letters
    of other scripts, which UTF-8 splits.
    """
    random = np.random.default_rng(seed)
    common = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weight = 1 / np.arange(2, len(common) + 2)
    alphabets = (
        (0.75, common, weight / weight.sum()),
        (0.1, np.array([chr(one) for one in range(0x430, 0x450)]), None),
        (0.06, np.array([chr(one) for one in range(0x4E00, 0x5200)]), None),
        (0.05, np.array(list("{}[]()<>:;,.=+-*/\"'\\!?#&|_ \n\t")), None),
        (0.04, np.array(list("0123456789")), None),
    )
    found: dict[bytes, None] = {}
    for share, alphabet, chances in alphabets:
        most = len(found) + int(share * size)
        while len(found) < most:
            lengths = 2 + random.geometric(0.25, size=4096).clip(max=14)
            letters = random.choice(alphabet, size=int(lengths.sum()), p=chances)
            begins = np.concatenate([[0], lengths.cumsum()])
            for low, high in itertools.pairwise(begins):
                word = "".join(letters[low:high])
                found.setdefault((word.title() if high % 5 == 0 else word).encode())
                found.setdefault(f" {word}".encode())
    for count in range(2, 64):
        found.setdefault(b" " * count)
    return byte_level(list(found)[: size - 256])
