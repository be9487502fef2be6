"""Text in reading order: what was told is final, and nothing of it is part of something."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dllm.serve.transcript import Transcript, more

MASK, END = 0, 1


class Bytes:
    """A tokenizer of one byte a token, from 10 on; 2 is special."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(token - 10 for token in tokens if token >= 10).decode(errors="replace")


def transcript(*stop: str) -> Transcript:
    tokenizer: Any = Bytes()
    return Transcript(tokenizer, MASK, (END,), stop)


def ids(text: str) -> list[int]:
    return [byte + 10 for byte in text.encode()]


def test_text_ends_at_the_first_mask_or_end_token() -> None:
    found = transcript()
    assert found.final([*ids("ab"), MASK, *ids("c")]) == "ab"
    assert found.final([*ids("ab"), END, *ids("c")]) == "ab"
    assert found.final([MASK]) == ""


def test_a_character_is_told_whole() -> None:
    tokens = ids("é€𝄞")
    told = [transcript().final([*tokens[:count], MASK]) for count in range(len(tokens) + 1)]
    assert set("".join(told)) == set("é€𝄞")
    assert told[-1] == "é€𝄞"


def test_what_may_begin_a_stop_string_waits() -> None:
    found = transcript("END", "x")
    assert found.final(ids("abcdE")) == "abc"
    assert found.final(ids("abcdEN")) == "abcd"
    assert found.text(ids("abcdENDe")) == "abcd"
    assert found.text(ids("axbEND")) == "a"


@pytest.mark.parametrize("seed", range(20))
def test_pieces_make_the_text_in_any_order(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice("aé€ \n𝄞b") for _ in range(12))
    stop = draw.choice([(), ("a b",), ("é", "zzz")])
    tokens, found, told = ids(text), transcript(*stop), ""
    open_ = list(range(len(tokens)))
    draw.shuffle(open_)
    while open_:
        for _ in range(min(draw.randint(1, 3), len(open_))):
            open_.pop()
        held = [MASK if place in open_ else token for place, token in enumerate(tokens)]
        told += more(told, found.final(held))
        assert found.text(tokens).startswith(told)
    told += more(told, found.text(tokens))
    assert told == found.text(tokens)


def test_what_was_told_is_not_taken_back() -> None:
    assert more("ab", "abc") == "c"
    assert more("ab", "ax") == ""
