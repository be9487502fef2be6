"""Automata over tokens against all strings of tokens, decoded; and what is kept of them."""

from __future__ import annotations

import itertools
import logging
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import dllm
from dllm.constraints import Choice, Ends, Regex, TokenAutomaton, cache_folder
from dllm.constraints.automaton import DEAD, ENDLESS, NEVER
from dllm.constraints.base import forget
from dllm.constraints.stored import digest_of, folder, maker
from dllm.constraints.vocabulary import vocabulary_of
from tests.support.vocabularies import SPECIAL, byte_level, finished, large_byte_level, plain
from tests.support.vocabularies import sentencepiece as marked

MARK = "\u2581"
BYTES = [b"a", b"ab", b"ba", b"b", b" a", "\u00e9".encode(), b"\xa9a", b"\xc3"]
PATTERNS = ["(ab)*", "a?b+| a", "[a\u00e9]{1,3}", ".*", "a|b|(\u00e9a)+", "(a|b)*a(a|b)"]


def chosen(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[text] for text in texts]


def styles() -> dict[str, tuple[PreTrainedTokenizerFast, list[int]]]:
    """Returns a tokenizer of each style with a few of its tokens, special ones among them."""
    written = bytes_to_unicode()
    level = byte_level(BYTES)
    spelled = ["".join(written[byte] for byte in text) for text in BYTES]
    pieces = ["a", "ab", f"{MARK}a", "b", MARK, "\u00e9"]
    metaspace = decoders.Metaspace()
    llama = decoders.Sequence(
        [
            decoders.Replace(MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    words = ["<unk>", "a", "ab", "b", " ", "\u00e9"]
    some = [*SPECIAL[:2], "<added>"]
    found = {"byte-level": (level, chosen(level, [*spelled, *some]))}
    for name, decoder in {"gemma": None, "llama": llama, "metaspace": metaspace}.items():
        tokenizer = marked(pieces, decoder)
        extra = [] if name == "metaspace" else ["<0xC3>", "<0xA9>"]
        found[name] = (tokenizer, chosen(tokenizer, [*pieces, *extra, *some]))
    tokenizer = plain(words)
    found["plain"] = (tokenizer, chosen(tokenizer, [*words[1:], *some]))
    return found


STYLES = styles()


@pytest.mark.parametrize("name", STYLES)
def test_strings_of_tokens_are_accepted_as_their_text_is(name: str) -> None:
    tokenizer, tokens = STYLES[name]
    special = {token for token in tokens if token in tokenizer.get_added_vocab().values()}
    (end,) = chosen(tokenizer, ["<eos>"])
    for pattern in PATTERNS:
        automaton = Regex(pattern).at(tokenizer)
        for size in range(4):
            for string in itertools.product(tokens, repeat=size):
                body = list(string)
                while body and body[-1] == end:
                    body.pop()
                text = str(tokenizer.decode(body))
                # Bytes that are no text are shown as \ufffd, and accepted by nothing.
                whole = not special & set(body) and "\ufffd" not in text
                expected = whole and bool(re.fullmatch(pattern, text))
                assert automaton.accepts(list(string)) == expected, (pattern, string)


def test_added_special_and_unknown_tokens_are_of_the_class_that_is_never_allowed() -> None:
    for tokenizer, _ in STYLES.values():
        automaton = Regex("(?s).*").at(tokenizer, Ends((3,), vocab_size=400))
        never = {*tokenizer.get_added_vocab().values(), *range(len(tokenizer), 400)} - {3}
        assert set(np.flatnonzero(automaton.class_of == NEVER)) >= never
        assert (automaton.table[:, NEVER] == DEAD).all()
        assert len(automaton.class_of) == 400


def test_an_end_leads_to_a_state_that_ends_and_padding_keep() -> None:
    tokenizer, _ = STYLES["plain"]
    a, b, eos, pad = chosen(tokenizer, ["a", "b", "<eos>", "<pad>"])
    automaton = Regex("a|ab").at(tokenizer)
    for good in ([a], [a, eos], [a, b, eos, eos], [a, eos, pad, pad, eos]):
        assert automaton.accepts(good)
    for bad in ([], [eos], [a, pad], [a, eos, a], [b], [a, pad, eos], [a, eos, b]):
        assert not automaton.accepts(bad)
    both = Regex("a").at(tokenizer, Ends((eos, pad)))
    assert both.accepts([a, pad, eos])
    assert not both.accepts([a, b])
    none = Regex("a").at(tokenizer, Ends(()))
    assert none.accepts([a])
    assert not none.accepts([a, eos])


def test_states_have_their_shortest_completion_and_all_are_of_use() -> None:
    tokenizer, _ = STYLES["plain"]
    automaton = Regex("(ab){3}|b{5}").at(tokenizer)
    (a, ab, b) = chosen(tokenizer, ["a", "ab", "b"])
    assert automaton.shortest[automaton.start] == 3
    state = automaton.table[automaton.start, automaton.class_of[b]]
    assert automaton.shortest[state] == 4
    assert (automaton.shortest != ENDLESS).all()
    assert automaton.class_of[a] != automaton.class_of[ab]
    columns = automaton.table.T
    assert len(np.unique(columns, axis=0)) == len(columns)  # classes differ


def test_a_language_that_the_tokens_cannot_spell_is_refused() -> None:
    tokenizer, _ = STYLES["plain"]
    with pytest.raises(ValueError, match=r"Regex\(xyz\) accepts no text that the tokenizer"):
        Regex("xyz").at(tokenizer)
    # States that only texts without a spelling reach are gone.
    spelled = Regex("a|xyz*|bx").at(tokenizer)
    assert spelled.num_states == 3


def test_half_of_a_surrogate_pair_in_a_pattern_is_in_no_text() -> None:
    assert Regex("a|[\ud800b]").at(STYLES["plain"][0]).num_states == 3


def test_ends_are_checked() -> None:
    tokenizer, _ = STYLES["plain"]
    with pytest.raises(ValueError, match=r"eos_token_ids=\(-1,\) must be token ids"):
        Ends((-1,))
    with pytest.raises(ValueError, match="have 10 tokens, the model vocab_size=5"):
        Regex("a").at(tokenizer, Ends((1,), vocab_size=5))


def with_decoder(decoder: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    if decoder is not None:
        backend.decoder = decoder
    return finished(backend)


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        (None, "puts a space between all tokens"),
        (decoders.WordPiece(), "decoder WordPiece makes text in a way"),
        (decoders.BPEDecoder(), "decoder BPEDecoder"),
        (decoders.CTC(), "decoder CTC"),
        (decoders.Replace("a", "b"), "decoder Replace"),
        (decoders.Strip(" ", 0, 1), "decoder Strip"),
    ],
)
def test_decoders_that_are_not_followed_are_named(decoder: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Regex("a").at(with_decoder(decoder))


def test_what_is_no_fast_tokenizer_is_named() -> None:
    with pytest.raises(ValueError, match="object is no fast tokenizer"):
        Regex("a").at(object())  # type: ignore[arg-type]


def test_the_embedded_tokenizer(tiny: dllm.HostedModel) -> None:
    tokenizer = tiny.tokenizer
    assert tokenizer is not None
    pattern = r"( ?[a-z]+)*[0-9,. ]*"
    automaton, source = Regex(pattern).at(tokenizer), random.Random(0)
    seen = set()
    for _ in range(1000):
        tokens = source.sample(range(3, len(tokenizer)), source.randrange(1, 4))
        accepted = bool(re.fullmatch(pattern, str(tokenizer.decode(tokens))))
        assert automaton.accepts(tokens) == accepted
        seen.add(accepted)
    assert seen == {False, True}


def test_tokens_of_a_large_vocabulary_act_as_their_bytes() -> None:
    tokenizer = large_byte_level(3_000, 0)
    pattern = '(?a)\\{"name":"([^"\\\\\\x00-\\x1f]|\\\\["\\\\/bfnrt])*","n":-?(0|[1-9]\\d*)\\}'
    language = Regex(pattern)
    states = language.byte_automaton()
    automaton = language.at(tokenizer)
    assert automaton.num_states == states.num_states + 1  # all bytes are tokens
    spellings = vocabulary_of(tokenizer).spellings
    source, end = random.Random(0), automaton.num_states - 1
    # The states of both are matched by walking to each from the start.
    match = {states.start: automaton.start}
    of_byte = chosen(tokenizer, [bytes_to_unicode()[byte] for byte in range(256)])
    for state in match_order(states.table, states.start):
        for byte in range(256):
            after = int(states.table[state, byte])
            reached = int(automaton.table[match[state], automaton.class_of[of_byte[byte]]])
            assert (after == DEAD) == (reached == DEAD)
            if after != DEAD:
                assert match.setdefault(after, reached) == reached
    for token in source.sample(range(len(spellings.begins) - 1), 400):
        for state, own in match.items():
            after = state
            for byte in spellings.of(token):
                after = int(states.table[after, byte]) if after != DEAD else DEAD
            expected = match[after] if after != DEAD and spellings.of(token) else DEAD
            reached = int(automaton.table[own, automaton.class_of[token]])
            assert reached == (
                end if token == tokenizer.eos_token_id and reached == end else expected
            )


def match_order(table: np.ndarray[Any, Any], start: int) -> list[int]:
    order, seen = [start], {start}
    for state in order:
        for after in sorted(set(table[state].tolist()) - {DEAD} - seen):
            seen.add(after)
            order.append(after)
    return order


def same(one: TokenAutomaton, other: TokenAutomaton) -> bool:
    return one.start == other.start and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("class_of", "table", "accepting", "shortest")
    )


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    usual = folder()
    cache_folder(tmp_path)
    forget()
    yield tmp_path
    cache_folder(usual)


def test_an_automaton_is_kept_in_memory_and_on_the_disk(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _ = STYLES["plain"]
    made = Regex("(ab)+").at(tokenizer)
    assert Regex("(ab)+").at(tokenizer) is made
    (file,) = cache.iterdir()
    forget()
    monkeypatch.setattr("dllm.constraints.base.token_automaton", None)  # nothing is made again
    read = Regex("(ab)+").at(tokenizer)
    assert read is not made
    assert same(read, made)
    assert [file] == list(cache.iterdir())


def test_other_sources_tokenizers_and_ends_have_other_files(cache: Path) -> None:
    one, other = STYLES["plain"][0], STYLES["gemma"][0]
    for language in (Regex("a"), Regex("b"), Choice(["a"])):
        language.at(one)
        language.at(one, Ends((7, 8)))
        language.at(one, Ends((7, 8), vocab_size=400))
        language.at(other)
    assert len(list(cache.iterdir())) == 12


def test_a_token_that_is_added_makes_another_tokenizer(cache: Path) -> None:
    tokenizer = plain(["<unk>", "a"])
    Regex("a").at(tokenizer)
    tokenizer.add_tokens(["new"])
    assert len(Regex("a").at(tokenizer).class_of) == len(tokenizer)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "wild"])
def test_a_damaged_file_is_made_again(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, _ = STYLES["byte-level"]
    made = Regex("(ab)+").at(tokenizer)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "wild":
        np.savez(file, **(held(made) | {"table": made.table + 1}))
    else:
        file.write_bytes(
            {
                "empty": b"",
                "cut": content[:middle],
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "foreign": b"PK\x03\x04 nothing",
            }[damage]
        )
    forget()
    with caplog.at_level(logging.WARNING):
        assert same(Regex("(ab)+").at(tokenizer), made)
    assert "is damaged and is made again" in caplog.text
    forget()
    caplog.clear()
    assert same(Regex("(ab)+").at(tokenizer), made)
    assert not caplog.text


def held(automaton: TokenAutomaton) -> dict[str, Any]:
    names = ("class_of", "table", "accepting", "shortest")
    return {name: getattr(automaton, name) for name in names} | {"start": np.int64(0)}


def test_a_folder_that_takes_no_file_is_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = cache / "file"
    blocked.write_text("")
    cache_folder(blocked / "folder")
    with caplog.at_level(logging.WARNING):
        assert Regex("a+").at(STYLES["plain"][0]).num_states == 3
    assert "a compiled constraint is not kept" in caplog.text


def test_where_files_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert folder() == cache
    cache_folder("~/elsewhere")
    assert folder() == Path.home() / "elsewhere"
    cache_folder(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "dllm" / "constraints"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folder() == Path.home() / ".cache" / "dllm" / "constraints"


def test_files_of_another_source_are_not_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, _ = STYLES["plain"]
    Regex("(ab)+").at(tokenizer)
    forget()
    monkeypatch.setattr("dllm.constraints.base.maker", lambda: "another")
    Regex("(ab)+").at(tokenizer)
    assert len(list(cache.iterdir())) == 2


def test_any_module_that_changes_is_another_source(tmp_path: Path) -> None:
    source = Path(dllm.constraints.__path__[0])
    copied = tmp_path / "constraints"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    before = digest_of(copied)
    assert maker().startswith(f"{before} ")  # files that are no source do not count
    module = copied / "regular" / "determinise.py"
    module.write_text(module.read_text() + "# more\n")
    assert digest_of(copied) != before
    module.rename(copied / "determinise.py")
    assert digest_of(copied) != before
