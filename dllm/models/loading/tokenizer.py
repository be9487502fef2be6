"""A checkpoint's tokenizer and chat template, read without running the checkpoint's code."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from dllm.models.config import CheckpointError

BYTE_LEVEL = ("vocab.json", "merges.txt")
OTHER = ("tokenizer_config.json", "tokenizer.model", *BYTE_LEVEL)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of a checkpoint folder, None when it has no tokenizer files.

    `tokenizer.json` describes a tokenizer completely, so its class is not looked up: the classes
    that LLaDA and Dream name are remote code. Dream ships only vocab.json and merges.txt, in
    Qwen2's byte-level format.
    """
    if (folder / "tokenizer.json").is_file():
        kind: type[PreTrainedTokenizerBase] = PreTrainedTokenizerFast
    elif all((folder / name).is_file() for name in BYTE_LEVEL):
        kind = Qwen2Tokenizer
    else:
        found = [name for name in OTHER if (folder / name).is_file()]
        if not found:
            return None
        raise CheckpointError(
            f"{folder} has {', '.join(found)} but no complete tokenizer; needed: tokenizer.json, "
            f"or {' and '.join(BYTE_LEVEL)}"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise CheckpointError(f"the tokenizer files in {folder} cannot be read: {error}") from error
    return tokenizer


def find_token(tokenizer: PreTrainedTokenizerBase, spellings: tuple[str, ...]) -> int | None:
    """Returns the id of the first spelling that the vocabulary has; never the unknown token's."""
    vocabulary = tokenizer.get_vocab()
    return next((vocabulary[text] for text in spellings if text in vocabulary), None)
