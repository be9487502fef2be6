"""`dllm background-frequency`: a corpus becomes the table that `pc_sampler` reads."""

from __future__ import annotations

from pathlib import Path

import dllm
from dllm.schedulers.frequencies import read_frequencies
from tests.support.commands import Inside


def test_the_command_counts_a_corpus(inside: Inside, tmp_path: Path) -> None:
    text, output = tmp_path / "corpus.txt", tmp_path / "table.json"
    text.write_text("tom has 53 pens.\ntom loses 3.\n" * 700, encoding="utf-8")
    done = inside("background-frequency", str(text), "-o", str(output))
    assert done.returncode == 0, done.stderr
    table, tokenizer = read_frequencies(str(output)), dllm.load("tiny").tokenizer
    assert tokenizer is not None
    (token,) = tokenizer("5", add_special_tokens=False)["input_ids"]
    assert table.counts[token] == 700
    assert str(table.total) in done.stderr
    again = inside("background-frequency", str(text), "-o", str(output))
    assert again.returncode == 2
    assert "--force" in again.stderr
    missing = inside("background-frequency", "nothing.txt", "-o", str(tmp_path / "b.json"))
    assert "there is no file 'nothing.txt'" in missing.stderr
    text.write_bytes(b"\xff\xfe\x00")
    binary = inside("background-frequency", str(text), "-o", str(tmp_path / "b.json"))
    assert "is no text in UTF-8" in binary.stderr
    text.write_text("")
    empty = inside("background-frequency", str(text), "-o", str(tmp_path / "b.json"))
    assert "nothing to count" in empty.stderr
    line = inside("generate", "copy: tom.", "-s", f"pc_sampler:{output},decay=0.25,cap=10")
    assert line.returncode == 0, line.stderr
