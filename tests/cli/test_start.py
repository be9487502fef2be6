"""What the beginning of a program imports: nothing that it does not use."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dllm
from dllm.cli.commands import SUMMARIES, function_of

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
OWN = ["dllm", "dllm.cli", "dllm.cli.commands", "dllm.cli.main"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generat"], []], ids=str)
def test_the_bare_command_imports_no_command(arguments: list[str]) -> None:
    modules = imported(COMMAND, *arguments)
    assert inside(modules, "dllm") == OWN
    assert inside(modules, "torch", "transformers", "numpy", "huggingface_hub", "yaml") == []


def test_completion_of_a_command_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COMPLETE": "complete_bash"}.items():
        monkeypatch.setenv(f"_DLLM_{name}", value)
    monkeypatch.setenv("COMP_WORDS", "dllm gen")
    monkeypatch.setenv("COMP_CWORD", "1")
    modules = imported(COMMAND)
    assert "generate" in modules  # what completion prints stands among them
    assert inside(modules, "dllm") == OWN


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
    assert files - named == beside | {"prompt_file", "rows"}


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
