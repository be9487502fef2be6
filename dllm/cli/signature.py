"""The signature of a command, from its module's text: what help, completion and errors show.

Only what its annotations and defaults need is run, and not the imports of its body, which are those
of torch. These few statements are those of the module itself, so nothing is said twice.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def signature_of(module: str, name: str) -> Callable[..., None]:
    """Returns the function of a module with its options and docstring, and without its body.

    The module is not imported.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert isinstance(spec.loader, importlib.abc.InspectLoader)
    text = spec.loader.get_source(module)
    assert text is not None
    tree = ast.parse(text)
    (command,) = (one for one in tree.body if _is_function(one) and name in _binds(one))
    assert isinstance(command, ast.FunctionDef)
    command.body = command.body[:1]  # the docstring
    tree.body = _needed(tree.body, command)
    scope: dict[str, Any] = {"__name__": module}
    exec(compile(tree, str(spec.origin), "exec"), scope)
    found: Callable[..., None] = scope[name]
    return found


def _needed(body: Sequence[ast.stmt], command: ast.stmt) -> list[ast.stmt]:
    """Returns those statements that one needs, itself included, in their order."""
    binding = {name: statement for statement in body for name in _binds(statement)}
    kept, left = set(), [command]
    while left:
        statement = left.pop()
        if statement not in kept:
            kept.add(statement)
            left += [binding[name] for name in _reads(statement) if name in binding]
    return [one for one in body if one in kept or _is_future(one)]


def _binds(statement: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement of a module gives a meaning."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (one.asname or one.name.partition(".")[0] for one in statement.names)
    elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for one in (node for target in targets for node in ast.walk(target)):
            if isinstance(one, ast.Name):
                yield one.id


def _reads(statement: ast.stmt) -> Iterator[str]:
    return (one.id for one in ast.walk(statement) if isinstance(one, ast.Name))


def _is_function(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef)


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
