"""The texts that `dllm generate` is given, as arguments or on stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def read_texts(given: Sequence[str]) -> list[str]:
    """Returns the texts, "-" replaced by what stdin holds; raises ValueError for an empty one."""
    texts = [sys.stdin.read().rstrip("\n") if text == "-" else text for text in given]
    for number, (text, origin) in enumerate(zip(texts, given, strict=True), start=1):
        if not text.strip():
            said = "stdin is empty" if origin == "-" else f"prompt {number}={text!r} is empty"
            raise ValueError(f'{said}: give a text to complete, or "-" to read one from stdin')
    return texts
