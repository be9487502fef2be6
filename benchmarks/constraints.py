"""What it takes to compile constraints for a large vocabulary, and what they add to a step.

    python -m benchmarks.constraints

The vocabulary is made up: byte-level tokens in the proportions of real ones, letters of three
scripts, digits, punctuation and runs of spaces. A step is all that a constraint adds to one: the
sets, the logits held to them, and the commits that go together; of the first answer in a language,
and of the second, which finds most sets that it asks for.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from benchmarks.constrained_steps import of_steps
from benchmarks.machine import machine, write
from benchmarks.options import Output, Repeats, Threads
from dllm.constraints import Choice, Constraint, JsonSchema, Regex, cache_folder
from dllm.constraints.base import forget
from dllm.constraints.vocabulary import vocabulary_of
from tests.support.vocabularies import large_byte_level

SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "email": {"type": "string", "format": "email"},
        "born": {"type": "string", "format": "date"},
        "active": {"type": "boolean"},
        "role": {"enum": ["admin", "editor", "author", "reader"]},
        "score": {"type": "number", "minimum": 0, "maximum": 100},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "city": {"type": "string"},
                "code": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["city"],
        },
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["id", "name", "email", "active", "role"],
}
LANGUAGES: dict[str, Callable[[], Constraint]] = {
    "schema of 10 fields": lambda: JsonSchema(SCHEMA),
    "any text": lambda: Regex("(?s).*"),
    "up to 200 characters": lambda: Regex(".{0,200}"),
    "words of Unicode": lambda: Regex(r"\w+( \w+)*"),
    "a date and words": lambda: Regex(r"\d{4}-\d{2}-\d{2}( \w+)*"),
    "1000 choices": lambda: Choice(f"choice number {number}" for number in range(1000)),
}


def main(
    tokens: Annotated[int, typer.Option(help="Tokens of the vocabulary.")] = 151_643,
    repeats: Repeats = 5,
    threads: Threads = 1,
    output: Output = None,
) -> None:
    """Measures how long constraints take to compile, and in a step."""
    torch.set_num_threads(threads)
    tokenizer = large_byte_level(tokens, seed=0)
    start = perf_counter()
    vocabulary = vocabulary_of(tokenizer)
    digest = perf_counter() - start
    _ = vocabulary.spellings
    spellings = perf_counter() - start - digest
    found = []
    for name, language in LANGUAGES.items():
        rounds = [measured(language, tokenizer) for _ in range(repeats)]
        record: dict[str, Any] = {"language": name} | rounds[0]
        for key in ("automaton_ms", "cold_ms", "disk_ms", "memory_ms"):
            record[key] = statistics.median(one[key] for one in rounds)
        constraint = language()
        record["step_ms"] = {
            answer: of_steps(constraint, tokenizer, len(tokenizer))
            for answer in ("first", "second")
        }
        found.append(record)
    vocabulary_record = {
        "tokens": len(tokenizer),
        "digest_ms": 1e3 * digest,
        "spellings_ms": 1e3 * spellings,
    }
    write({"machine": machine("cpu"), "vocabulary": vocabulary_record, "languages": found}, output)


def measured(language: Callable[[], Constraint], tokenizer: Any) -> dict[str, Any]:
    """Returns times in milliseconds and sizes of a language that nobody has compiled before.

    Cold is all of it, from source to automaton over tokens; the automaton over bytes is a part.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache_folder(folder)
        times, automaton, states = _timed(language, tokenizer)
        cache_folder(None)
    return times | {
        "byte_states": states,
        "states": automaton.num_states,
        "classes": automaton.num_classes,
        "mib": automaton.num_bytes / 2**20,
    }


def _timed(language: Callable[[], Constraint], tokenizer: Any) -> tuple[dict[str, float], Any, int]:
    forget()
    start = perf_counter()
    constraint = language()
    states = constraint.byte_automaton().num_states
    times = {"automaton_ms": 1e3 * (perf_counter() - start)}
    automaton = constraint.at(tokenizer)
    times["cold_ms"] = 1e3 * (perf_counter() - start)
    for name in ("disk_ms", "memory_ms"):
        if name == "disk_ms":
            forget()
        start = perf_counter()
        language().at(tokenizer)
        times[name] = 1e3 * (perf_counter() - start)
    return times, automaton, states


if __name__ == "__main__":
    typer.run(main)
