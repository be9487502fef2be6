"""The house: rooms import downwards, without circles, and only `state/` writes a canvas."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache

import pytest

from tests.support import ROOT

# From the ground up; who shares a floor may meet, but not in a circle.
FLOORS = (
    ("dllm.kernels", "dllm.registry"),
    ("dllm.state",),
    ("dllm.models", "dllm.learn2pd"),
    ("dllm.schedulers", "dllm.cache", "dllm.metrics", "dllm.output"),
    ("dllm.decoding",),
    ("dllm.settings", "dllm.aliases", "dllm.prompts"),
    ("dllm.compatible", "dllm.assembly", "dllm.generate"),
    ("dllm.trace",),
    ("dllm.eval",),
    ("dllm.training",),
    ("dllm.doctor",),
    ("dllm.cli", "dllm.__main__"),
)
LINKED = ("schedulers", "cache", "eval")


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
    own = floor_of(name)
    assert own is not None
    up = []
    for imported in imports_of(modules()[name]):
        floor = floor_of(imported)
        # `import dllm` and the packages beside it are the front door: for commands and their like.
        if floor is None:
            assert own >= floor_of("dllm.eval"), f"{name} imports the front door"
        elif floor > own:
            up.append(imported)
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


def is_canvas(node: ast.expr) -> bool:
    """Whether an expression names a canvas: `canvas`, `draft`, `all_rows`, or their attributes."""
    names = ("canvas", "draft", "all_rows")
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Attribute) and node.attr in names


def writes(tree: ast.AST) -> Iterator[int]:
    """Yields the lines that write to a canvas: its attributes, or its tensors in place."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            target = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(target, ast.Attribute) and is_canvas(target.value):
                yield node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, method = node.func.value, node.func.attr
            in_place = method.endswith("_") and not method.endswith("__")
            if in_place and isinstance(owner, ast.Attribute) and is_canvas(owner.value):
                yield node.lineno
        named = node.func if isinstance(node, ast.Call) else None
        if isinstance(named, ast.Name) and named.id == "setattr" and is_canvas(node.args[0]):
            yield node.lineno


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
