"""Loading a checkpoint's tokenizer without running code from it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.qwen2 import Qwen2Tokenizer

from dllm.models.errors import CheckpointError

_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of a folder with its chat template; None if it has no such files.

    Dream ships vocab.json and merges.txt, but no tokenizer.json and a class of its own; its
    vocabulary is Qwen2's, and so is the tokenizer used then.
    """
    if not any((folder / name).exists() for name in _FILES):
        return None
    try:
        if (folder / "tokenizer.json").exists():
            return _with_tokenizer_json(folder)
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return Qwen2Tokenizer.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _with_tokenizer_json(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError):  # a class of the checkpoint's own: read the file itself
        return PreTrainedTokenizerFast.from_pretrained(folder)


def token_id(tokenizer: PreTrainedTokenizerBase | None, spellings: tuple[str, ...]) -> int | None:
    """Returns the id of the first spelling that the vocabulary has, None if it has none."""
    if tokenizer is None:
        return None
    known = tokenizer.get_vocab()
    return next((known[spelling] for spelling in spellings if spelling in known), None)
