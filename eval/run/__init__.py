"""One run: problems in, results out, resumed after a kill, shared among processes.

`digest_of` says what code decides its answers: an edited rule is another run.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Rooms of dllm that hold rules; the rest of it goes by its version.
_ROOMS = tuple(
    f"dllm.{room}." for room in ("schedulers", "cache", "decoding.speculation", "eval.tasks")
)
_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = Path(inspect.__file__).parent  # the folder of the standard library
# Attributes of a class that Python makes of the others, or that say where it stands.
_MADE = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__abstractmethods__"),
    *("_abc_impl", "__dataclass_params__", "__dataclass_fields__", "__match_args__"),
    *("__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__"),
    *("__annotations_cache__", "__annotate_func__", "__annotations__", "__hash__"),
}
_LARGE, _SAMPLED = 2**20, 2**16  # elements of a tensor: of more than the first, some count
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Path, torch.dtype, torch.device)


def digest_of(*values: object) -> str:
    """Returns a digest of the code behind parts, classes and functions, as it runs now.

    The text of the modules that define them, with what these import of the same rooms or of the
    user's own folders; for code that is not dllm's also what was compiled, with the values that it
    reads, since a notebook has no file and a file may have changed after it was imported.
    """
    found = _Sources(values)
    described = [found.of(value) for value in values]
    return _hash(repr((described, sorted(found.modules.items()), sorted(found.codes.items()))))


def stable(value: Any) -> Any:
    """Returns an option's value as JSON-ready values that are the same in every process."""
    if isinstance(value, Mapping):
        return {str(key): stable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [stable(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name} {digest_of(value)}"


def _hash(text: str | bytes) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:16]


class _Sources:
    """Collects the modules and the code that values lead to, each once."""

    def __init__(self, values: Iterable[object]) -> None:
        self.modules: dict[str, str] = {}  # digests of their text
        self.codes: dict[str, str] = {}  # of classes and functions
        # Of what was asked for: own rules, even if they are installed as a package.
        self._packages = {_module_of(value).partition(".")[0] for value in values}
        self._met: dict[int, object] = {}  # kept, so that no number is given twice

    def of(self, value: object) -> str:
        """Returns a value as text that is the same in every process, and collects its code."""
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if id(value) in self._met:
            return f"again {getattr(value, '__qualname__', type(value).__qualname__)}"
        self._met[id(value)] = value
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        function = _function(value)
        if function is not None:
            return self._function(function)
        held = _held(value)
        return self.of(held) if held is not None else self._object(value)

    def _object(self, value: Any) -> str:
        if isinstance(value, Tensor):
            flat = value.detach().flatten()
            flat = flat[:: max(flat.numel() // _SAMPLED, 1)] if flat.numel() > _LARGE else flat
            data = flat.cpu().contiguous().view(torch.uint8)
            return f"tensor {value.dtype} {tuple(value.shape)} {_hash(data.numpy().tobytes())}"
        if isinstance(value, Mapping):
            return str(sorted((self.of(key), self.of(one)) for key, one in value.items()))
        if isinstance(value, list | tuple):
            return str([self.of(one) for one in value])
        if isinstance(value, set | frozenset):
            return str(sorted(map(self.of, value)))
        if type(value).__module__ == "numpy":
            return f"{value.dtype} {value.shape} {_hash(value.tobytes())}"
        kind, held = self.of(type(value)), getattr(value, "__dict__", None) or {}
        if _in_room(type(value).__module__):  # its options are in the description
            held = {k: v for k, v in held.items() if hasattr(v, "summary")}
        elif not (self._is_own(type(value).__module__) or _is_dllm(type(value).__module__)):
            held = {}
        return f"{kind} {getattr(value, '__name__', '')} {self.of(dict(held))}"

    def _class(self, value: type) -> str:
        for base in value.__mro__:
            self._met[id(base)] = base
            if self._is_own(base.__module__) or _in_room(base.__module__):
                self._module(base.__module__)
                dllms = _is_dllm(base.__module__)
                self._note(base, self._attributes(base, only_patched=dllms))
        return f"class {value.__qualname__}"

    def _attributes(self, owner: type, *, only_patched: bool) -> str:
        """Returns what a class holds; of classes whose text says it, what was put there later."""
        found = []
        for name, value in sorted(vars(owner).items()):
            function = _function(value)
            elsewhere = function is not None and function.__module__ != owner.__module__
            generated = function is not None and function.__code__.co_filename == "<string>"
            if name not in _MADE and (not only_patched or (elsewhere and not generated)):
                found.append((name, self.of(value)))
        return str(found) if found else ""

    def _function(self, value: types.FunctionType) -> str:
        where, name = value.__module__ or "__main__", value.__qualname__
        self._module(where)
        if _is_dllm(where) or not self._is_own(where):
            return f"function {where}:{name}"
        cells = [_content(cell) for cell in value.__closure__ or ()]
        read = {
            key: value.__globals__[key]
            for key in sorted(_names(value.__code__))
            if key in value.__globals__
        }
        defaults = (value.__defaults__, value.__kwdefaults__)
        parts = self._code(value.__code__), *map(self.of, (cells, read, defaults))
        self._note(value, str(parts))
        return f"function {name} {_hash(str(parts))}"

    def _code(self, code: types.CodeType) -> str:
        inside = [
            self._code(one) if isinstance(one, types.CodeType) else self.of(one)
            for one in code.co_consts
        ]
        flat = code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars
        return str((code.co_name, *flat, inside))

    def _note(self, value: Any, text: str) -> None:
        if text:
            key = f"{value.__qualname__} {_hash(text)}"
            self.codes[key] = _hash(text)

    def _is_own(self, module: str) -> bool:
        """Whether a module is the user's: of no library, or of the package that was asked for."""
        top = module.partition(".")[0]
        if _is_dllm(module) or top in sys.stdlib_module_names:
            return False
        file = _file_of(module)
        return top in self._packages or file is None or not _installed(file)

    def _module(self, name: str) -> None:
        """Collects the text of a module that has a file, and of what it imports."""
        file = _file_of(name)
        wanted = _in_room(name) if _is_dllm(name) else self._is_own(name)
        key = name if "." in name or file is None else file.stem
        if file is None or not wanted or key in self.modules:
            return
        text = file.read_bytes()
        self.modules[key] = _hash(text)
        for imported, path in _imported(name, file, text):
            if imported not in sys.modules and path is not None:
                self.modules.setdefault(imported, _hash(path.read_bytes()))
            elif imported in sys.modules:
                self._module(imported)


def _module_of(value: Any) -> str:
    """Returns the module that defines a class, a function or an object's class."""
    value = _function(value) or (value if isinstance(value, type) else type(value))
    return str(value.__module__)


def _function(value: Any) -> types.FunctionType | None:
    """Returns the function that a method or a decorated one stands for."""
    value = getattr(value, "__func__", value)
    value = value.func if isinstance(value, functools.cached_property) else value
    value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
    value = getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


def _held(value: Any) -> tuple[Any, ...] | None:
    """Returns what some objects of libraries hold, None of all others."""
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, torch.Generator):
        return str(value.device), value.get_state()
    if isinstance(value, nn.Module):
        return type(value), dict(value.state_dict())
    return (value.fget, value.fset, value.fdel) if isinstance(value, property) else None


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: types.CodeType) -> set[str]:
    """Returns the names that code and the functions inside it read."""
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_dllm(module: str) -> bool:
    return module.partition(".")[0] == "dllm"


def _in_room(module: str) -> bool:
    return module.startswith(_ROOMS)


def _installed(file: Path) -> bool:
    return bool(_INSTALLED & set(file.parts)) or file.is_relative_to(_STANDARD)


def _file_of(module: str) -> Path | None:
    """Returns the source file of a loaded module, None where it has none."""
    name = getattr(sys.modules.get(module), "__file__", None)
    return Path(name) if name and name.endswith(".py") and Path(name).is_file() else None


def _imported(module: str, file: Path, text: bytes) -> Iterator[tuple[str, Path | None]]:
    """Yields the names of modules that a module may import, with files in its own folder."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    root = file.parents[len(package.split("."))] if package else file.parent
    for name in _written(ast.parse(text), package):
        base = root.joinpath(*name.split("."))
        files = (base.with_suffix(".py"), base / "__init__.py")
        yield name, next((path for path in files if path.is_file()), None)


def _written(tree: ast.AST, package: str) -> Iterable[str]:
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level + (node.module or "")
            name = importlib.util.resolve_name(dots, package) if node.level else dots
            found |= dict.fromkeys([name, *(f"{name}.{alias.name}" for alias in node.names)])
    return found
