"""The house: rooms import downwards, without circles, and only `state/` writes a canvas."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache

import pytest

from tests.support import ROOT

# From the ground up; who shares a floor may meet, but not in a circle.
FLOORS = (
    ("dllm.kernels", "dllm.options", "dllm.reading"),
    ("dllm.registry",),
    ("dllm.state",),
    ("dllm.constraints",),
    ("dllm.models", "dllm.learn2pd"),
    ("dllm.schedulers", "dllm.cache", "dllm.metrics", "dllm.output"),
    ("dllm.decoding",),
    ("dllm.settings", "dllm.aliases", "dllm.prompts", "dllm.infilling", "dllm.recipes"),
    ("dllm.compatible", "dllm.layout", "dllm.assembly", "dllm.generate"),
    ("dllm.trace",),
    ("dllm.eval",),
    ("dllm.tuning",),
    ("dllm.serve",),
    ("dllm.training",),
    ("dllm.doctor", "dllm.advice"),
    ("dllm.integrations",),
    ("dllm.cli", "dllm.__main__"),
)
LINKED = ("schedulers", "cache", "constraints", "eval")
REASON = "# "


@cache
def modules() -> Mapping[str, ast.Module]:
    """Returns the tree of each module of the package, the linked folders included."""
    found = {}
    for top in ("dllm", *LINKED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if top == "dllm" and len(parts) > 1 and parts[1] in LINKED:
                continue  # the link itself
            name = ".".join(parts if top == "dllm" else ("dllm", *parts))
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yields the modules of the package that a tree imports, wherever that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("dllm"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dllm"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else str(node.module)


def floor_of(name: str) -> int | None:
    """Returns the number of a module's floor, None for the front door that shows all."""
    for number, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return number
    return None


def test_every_module_stands_on_a_floor() -> None:
    assert [name for name in modules() if floor_of(name) is None] == ["dllm"]


@pytest.mark.parametrize("name", sorted(set(modules()) - {"dllm"}))
def test_imports_go_down(name: str) -> None:
    own, evaluation = floor_of(name), floor_of("dllm.eval")
    assert own is not None
    assert evaluation is not None
    floors = {imported: floor_of(imported) for imported in imports_of(modules()[name])}
    # `import dllm` is the front door: for commands and their like, which stand above it.
    up = [one for one, floor in floors.items() if (evaluation if floor is None else floor) > own]
    assert not up, f"{name} imports what stands above it"


def test_there_is_no_circle() -> None:
    graph = {name: set(imports_of(tree)) - {name, "dllm"} for name, tree in modules().items()}
    graph.pop("dllm")
    while graph:
        leaves = {name for name, imported in graph.items() if not imported & set(graph)}
        assert leaves, f"these import each other in circles: {circle(graph)}"
        graph = {name: imported for name, imported in graph.items() if name not in leaves}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns one circle of a graph in which every module imports another of it."""
    walk = [min(graph)]
    while len(set(walk)) == len(walk):
        walk.append(min(graph[walk[-1]] & set(graph)))
    return walk[walk.index(walk[-1]) :]


def inner_imports() -> Iterator[tuple[str, ast.stmt]]:
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = (part for statement in node.body for part in ast.walk(statement))
                yield from ((name, p) for p in inside if isinstance(p, ast.Import | ast.ImportFrom))


def test_an_import_inside_a_function_says_why() -> None:
    """Only start-up time and optional packages are reasons; it stands on the line or above it."""
    silent = []
    for name, node in inner_imports():
        lines = source(name).splitlines()
        line, above = lines[node.lineno - 1], lines[node.lineno - 2].strip()
        while above.startswith(("import ", "from ")):  # several for one reason
            node.lineno -= 1
            above = lines[node.lineno - 2].strip()
        if REASON not in line and not above.startswith(REASON):
            silent.append(f"{name}: {line.strip()}")
    assert not silent


def source(name: str) -> str:
    parts = name.split(".")
    parts = parts[1:] if len(parts) > 1 and parts[1] in LINKED else parts
    path = ROOT.joinpath(*parts)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def is_canvas(node: ast.expr) -> bool:
    """Whether an expression names a canvas: `canvas`, `draft`, `all_rows`, or their attributes."""
    names = ("canvas", "draft", "all_rows")
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Attribute) and node.attr in names


def writes(tree: ast.AST) -> Iterator[int]:
    """Yields the lines that write to a canvas: its attributes, or its tensors in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            owners = [one.value if isinstance(one, ast.Subscript) else one for one in targets]
            if any(isinstance(one, ast.Attribute) and is_canvas(one.value) for one in owners):
                yield node.lineno
        elif isinstance(node, ast.Call) and calls_a_write(node.func, node.args):
            yield node.lineno


def calls_a_write(called: ast.expr, arguments: list[ast.expr]) -> bool:
    """Whether a call sets an attribute of a canvas, or changes one of its tensors in place."""
    if isinstance(called, ast.Name):
        return called.id == "setattr" and is_canvas(arguments[0])
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Attribute):
        return False
    in_place = called.attr.endswith("_") and not called.attr.endswith("__")
    return in_place and is_canvas(called.value.value)


def test_nothing_outside_the_state_writes_a_canvas() -> None:
    found = {
        name: lines
        for name, tree in modules().items()
        if not name.startswith("dllm.state") and (lines := list(writes(tree)))
    }
    assert not found


def test_a_write_is_seen() -> None:
    planted = """
canvas.tokens = 1
self.canvas.step += 1
canvas.tokens[0] = 1
canvas.tokens.masked_fill_(a, b)
setattr(canvas, name, 1)
canvas.window(plan)
other.tokens = 1
"""
    assert list(writes(ast.parse(planted))) == [2, 3, 4, 5, 6]


def test_rooms_hold_what_a_reader_can_hold() -> None:
    flat = [path for path in (ROOT / "dllm").glob("*.py") if not path.name.startswith("__")]
    assert len(flat) <= 12
    assert len(list((ROOT / "eval").glob("*.py"))) <= 6
    assert len(modules()) <= 414
    long = {name: len(source(name).splitlines()) for name in modules()}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}
