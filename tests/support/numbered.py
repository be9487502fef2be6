"""A tokenizer whose text is the numbers of its tokens, for models that have none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tests.support.models import model_of


class Numbers:
    """Spells tokens as their numbers: "5 6" is [5, 6]."""

    unk_token_id = None
    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(one) for one in text.split()]

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, tokens))


def numbered(name: str) -> Any:
    """Returns a golden or a random model with that tokenizer."""
    return replace(model_of(name), tokenizer=Numbers())  # type: ignore[arg-type]


def spelled(tokens: Iterable[int]) -> str:
    """Returns the text of tokens."""
    return " ".join(map(str, tokens))
