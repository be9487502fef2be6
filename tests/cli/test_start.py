"""What the beginning of a program imports: nothing that it does not use."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import typer

import dllm
from dllm.cli import defaults
from dllm.cli.commands import SUMMARIES, function_of, parser_of
from dllm.cli.signature import signature_of
from dllm.eval.report.page import KEPT
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings
from dllm.training import context_filter, learn2pd

# torch's compiler and what comes with it, and what only few programs need.
COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "triton")
SELDOM = (
    "accelerate",
    "datasets",
    "matplotlib",
    "sklearn",
    "pandas",
    "fastapi",
    "torchao",
)
ROOMS = ("dllm.eval", "dllm.serve", "dllm.training", "dllm.doctor", "dllm.trace")


def imported(code: str, *arguments: str) -> set[str]:
    """Returns the names of the modules that a program has imported when it ends."""
    ended = "import atexit, sys; atexit.register(lambda: print('', *sys.modules, sep='\\n'))"
    words = [sys.executable, "-c", f"{ended}\nsys.argv[1:] = {list(arguments)}\n{code}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stdout.split())


def inside(modules: set[str], *packages: str) -> list[str]:
    """Lists those of the modules that are packages or lie in them."""
    return sorted(one for one in modules if any(f"{one}.".startswith(f"{p}.") for p in packages))


COMMAND = "sys.argv[0] = 'dllm'; from dllm.cli import main; main()"
OWN = ["dllm", "dllm.cli", "dllm.cli.commands", "dllm.cli.main", "dllm.cli.signature"]
DECLARED = ["dllm.cli.constrained", "dllm.cli.defaults", "dllm.cli.options"]
SLOW = ("torch", "transformers", "numpy", "huggingface_hub", "yaml")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generat"], []], ids=str)
def test_the_bare_command_imports_no_command(arguments: list[str]) -> None:
    modules = imported(COMMAND, *arguments)
    assert inside(modules, "dllm") == OWN
    assert inside(modules, *SLOW) == []


@pytest.mark.parametrize("asked", ["--help", "--no-such-option"])
@pytest.mark.parametrize("name", SUMMARIES)
def test_a_command_says_what_it_takes_without_its_module(name: str, asked: str) -> None:
    modules = imported(COMMAND, name, asked)
    assert inside(modules, *SLOW) == [], "what its options need imports these"
    assert {*OWN} <= modules
    assert function_of(name).__module__ not in modules


@pytest.mark.parametrize("name", SUMMARIES)
def test_what_a_command_says_it_takes_is_what_its_function_takes(name: str) -> None:
    whole = typer.Typer(add_completion=False, rich_markup_mode=None)
    whole.command(name)(function_of(name))
    expected = typer.main.get_command(whole)
    assert parser_of(name).help == expected.help
    assert said_of(parser_of(name)) == said_of(expected)
    assert said_of(expected)


def said_of(command: Any) -> list[list[str]]:
    """Lists all that is known of each option of a command, in their order."""
    known = ["name", "opts", "secondary_opts", "default", "required", "nargs", "multiple", "help"]
    known += ["type", "show_default", "is_flag"]
    return [[repr(getattr(one, key, None)) for key in known] for one in command.params]


def test_defaults_that_are_said_twice_are_the_same() -> None:
    expected = {
        "SCHEDULER": Settings.scheduler,
        "CACHE": Settings.cache,
        "MAX_NEW_TOKENS": Settings.max_new_tokens,
        "TEMPERATURE": Settings.temperature,
        "BLOCK_LENGTH": DEFAULT_BLOCK_LENGTH,
        "SHOWN": KEPT,
        "EPOCHS": learn2pd.Recipe.epochs,
        "FILTER_RATE": learn2pd.Recipe.learning_rate,
        "ROUNDS": context_filter.Recipe.rounds,
        "STEPS": context_filter.Recipe.steps,
        "CONTEXT_RATE": context_filter.Recipe.learning_rate,
    }
    said = {name: value for name, value in vars(defaults).items() if name.isupper()}
    assert said.pop("ROWS") > 0  # said there alone
    assert said == expected


# What the signature of a function needs of its module, and nothing besides.
MODULE = '''
"""A module whose body cannot be imported."""

from __future__ import annotations

import sys as system
from fractions import Fraction

import no_such_module
from no_such_module import Missing

PLACES = FIRST, SECOND = 1, 2
THIRD: int = FIRST + SECOND
FAULTS = (Missing,)
UNIT = Fraction(1, THIRD)


class Kind:
    """Named by an annotation."""

    size = SECOND


def double(number: int) -> int:
    return SECOND * number


def command(one: Kind, two: int = double(THIRD), three: Fraction = UNIT) -> None:
    """Its docstring."""
    raise Missing(no_such_module, one, two, three)


command_of_another = no_such_module
'''


def test_a_signature_needs_what_it_names_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_module_of_commands.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = signature_of("a_module_of_commands", "command")
    taken = inspect.signature(found, eval_str=True).parameters
    assert found.__doc__ == "Its docstring."
    assert [taken[name].default for name in ("two", "three")] == [6, Fraction(1, 3)]
    assert taken["one"].annotation.size == 2
    assert {"system", "FAULTS", "Missing"} & found.__globals__.keys() == set()
    assert "a_module_of_commands" not in sys.modules


@pytest.mark.parametrize(
    ("words", "found", "read"),
    [("dllm gen", "generate", []), ("dllm quantize --dev", "--device", DECLARED[1:])],
)
def test_completion_imports_no_command(
    monkeypatch: pytest.MonkeyPatch, words: str, found: str, read: list[str]
) -> None:
    monkeypatch.setenv("_DLLM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    modules = imported(COMMAND)
    assert found in modules  # what completion prints stands among them
    assert inside(modules, "dllm") == sorted([*OWN, *read])
    assert inside(modules, *SLOW) == []


def test_the_package_imports_nothing() -> None:
    modules = imported("import dllm")
    assert inside(modules, "dllm", "torch", "transformers", "numpy") == ["dllm"]


def test_loading_imports_what_a_network_needs() -> None:
    modules = imported("import dllm; dllm.load('tiny')")
    assert inside(modules, *COMPILER, *SELDOM, "transformers.models", *ROOMS) == []
    assert "torch" in modules
    assert inside(modules, "dllm.schedulers", "dllm.constraints", "dllm.decoding") == []


def test_a_model_without_a_tokenizer_needs_no_transformers() -> None:
    names = "Settings, generate, load, wrap, GenerationOutput, speed_up"
    modules = imported(f"from dllm import {names}")
    assert inside(modules, *COMPILER, *SELDOM, "transformers", "jinja2", "tokenizers") == []
    assert "dllm.generate" in modules


def test_a_name_of_a_registry_imports_its_module_alone() -> None:
    code = "from dllm import schedulers, cache\nschedulers.registry.create('threshold:0.9')"
    modules = imported(f"{code}\ncache.registry.create('none')")
    rules = inside(modules, "dllm.schedulers")
    assert rules == ["dllm.schedulers", "dllm.schedulers.base", "dllm.schedulers.threshold"]
    assert "dllm.cache.none" in modules
    assert inside(modules, "dllm.cache.prefix", "dllm.cache.dual", "dllm.cache.dkv") == []


def test_every_command_is_listed_with_the_first_line_of_its_docstring() -> None:
    said = {name: (function_of(name).__doc__ or "").splitlines()[0] for name in SUMMARIES}
    assert said == SUMMARIES
    folder = Path(dllm.__file__).parent / "cli"
    files = {path.stem for path in folder.glob("*.py")}
    named = {function_of(name).__module__.rpartition(".")[2] for name in SUMMARIES}
    beside = {"__init__", "asked", "commands", "constrained", "loading", "main", "options", "ranks"}
    beside |= {"chosen", "defaults", "prompt_file", "rows", "signature"}
    assert files - named == beside


# The names of the package, which are looked up when they are used.


def test_type_checkers_see_the_names_that_there_are() -> None:
    tree = ast.parse(Path(dllm.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE" in _test(node))
    seen = {
        name.name: one.module
        for one in guarded.body
        if isinstance(one, ast.ImportFrom)
        for name in one.names
    }
    rooms = {"cache", "constraints", "eval", "schedulers", "verifiers"}
    assert {name: where for name, where in seen.items() if name not in rooms} == dllm._WHERE
    assert sorted(seen) == sorted(dllm.__all__) == sorted({*dllm._WHERE, *dllm._ROOMS})


def _test(node: ast.If) -> str:
    return ast.unparse(node.test)


@pytest.mark.parametrize("name", dllm.__all__)
def test_every_name_of_the_package_is_there(name: str) -> None:
    assert getattr(dllm, name) is not None
    assert name in dir(dllm)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dllm' has no attribute 'generat'"):
        _ = dllm.generat  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "order",
    [
        "from dllm.generate import Stream; import dllm",
        "import dllm; dllm.generate; import dllm.generate",
        "import dllm.generate",
        "from dllm.serve import engine; import dllm",
    ],
)
def test_generate_is_a_function_whatever_was_imported_first(order: str) -> None:
    assert "dllm.generate" in imported(f"{order}\nassert dllm.generate.__name__ == 'generate'")
