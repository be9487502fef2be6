"""Python in a text: statements between prose, and programs of a function with what it needs."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import dedent

_STARTS = re.compile(  # of a statement; whether it is one is for the compiler to say
    r"\s*(?:@|(?:async|def|class|for|while|with|if|try|import|from)\b|[\w.]+\s*\(|"
    r"[\w.\[\]'\", ]+(?::[^=]+)?[-+*/|]?=)"
)
_GOES_ON = re.compile(r"\s*(?:else|elif|except|finally)\b")
_BLANK = re.compile(r"^[ \t\xa0\u3000]+", re.MULTILINE)
_TRIES = 30  # ends of a statement
_SETTINGS = ("set", "register")  # calls behind a definition that it may need
Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_NAMING = (*FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Statement:
    """A statement at the top of some code, with the comments before it."""

    code: str
    node: ast.stmt

    @property
    def binds(self) -> set[str]:
        """The names that it gives a value."""
        return set(_bound(self.node))


def error_line(code: str) -> int | None:
    """Returns the line of the first mistake, None if code is Python."""
    try:
        compile(code, "answer", "exec", dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return 1
    return None


def compiles(code: str) -> bool:
    """Whether code is Python."""
    return error_line(code) is None


def statements(code: str) -> list[Statement]:
    """Returns the statements at the top of code that compiles."""
    found, lines, end = list[Statement](), code.split("\n"), 0
    nodes = ast.parse(code).body
    for number, node in enumerate(nodes):
        last = node.end_lineno or node.lineno
        begins = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        shared = begins <= end or (number + 1 < len(nodes) and nodes[number + 1].lineno == last)
        own = ast.get_source_segment(code, node) if shared else "\n".join(lines[end:last])
        found.append(Statement((own or "").strip("\n"), node))
        end = last
    return found


def runs(text: str) -> list[list[Statement]]:
    """Returns the statements in a text, those together that no prose stands between."""
    lines, found, run, at = text.split("\n"), list[list[Statement]](), list[Statement](), 0
    while at < len(lines):
        end = _end(lines, at) if lines[at].strip() else at
        if end is None:
            found, run = [*found, run], []
        elif end > at:
            run += statements(aligned("\n".join(lines[at:end])))
        at = max(end or 0, at + 1)
    return [one for one in (*found, run) if one]


def aligned(code: str) -> str:
    """Returns code that begins at the margin, with spaces for tabs before its lines."""
    return dedent(_BLANK.sub(lambda blank: blank[0].replace("\xa0", " ").expandtabs(4), code))


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())


def _end(lines: Sequence[str], at: int) -> int | None:
    """Returns the line behind a statement, None where there is none."""
    tries, width = 0, _width(lines[at])
    for end in range(at + 1, len(lines) + 1) if _STARTS.match(lines[at]) else ():
        line = lines[end] if end < len(lines) else ""
        inside = end < len(lines) and (not line.strip() or _width(line) > width)
        if inside or _GOES_ON.match(line):
            continue
        code, tries = aligned("\n".join(lines[at:end])), tries + 1
        if compiles(code):
            node = (ast.parse(code).body or [ast.Pass()])[-1]
            empty = isinstance(node, ast.AnnAssign) and node.value is None  # as in "Note: it is"
            return None if empty or isinstance(node, ast.Pass) else end
        if tries == _TRIES:
            break
    return None


def kept(block: Sequence[Statement], name: str, *, whole: bool) -> list[Statement]:
    """Returns the statements of a block that belong to a function; empty if it has none.

    Of a whole program all up to it, for it was written to run so; behind it, and in a text, what it
    needs. Examples and tests of it are left out: they may wait for input, or be wrong.
    """
    ends = [number for number, one in enumerate(block) if _defines(one, name, block[:number])]
    if not ends:
        return []
    first, later = block[: ends[-1] + 1], block[ends[-1] + 1 :]
    own = list(first) if whole else [first[-1]]
    while True:
        needed = free(own) | {name}
        more = [one for one in block if one not in own and _helps(one, name) and one.binds & needed]
        more += [one for one in later if one not in own and _sets(one.node)]
        if not more:
            return [one for one in block if one in own]
        own += more


def _defines(one: Statement, name: str, before: Sequence[Statement]) -> bool:
    """Whether a statement makes the function, by any of the ways there are."""
    node = one.node
    if isinstance(node, ast.ClassDef) and name not in one.binds:
        return any(isinstance(inner, FUNCTIONS) and inner.name == name for inner in node.body)
    if name not in one.binds or isinstance(node, ast.Import | ast.ImportFrom):
        return False
    if isinstance(node, ast.Assign | ast.AnnAssign):
        again = any(name in earlier.binds for earlier in before)  # wrapped by a decorator
        known = again or not _uses(node.value or node, name)
        return known and isinstance(node.value, ast.Lambda | ast.Name | ast.Attribute | ast.Call)
    return not _is_main(node)


def _helps(one: Statement, name: str) -> bool:
    """Whether a statement may be a part of the program of a function, not a use of it."""
    if isinstance(one.node, _NAMING):
        return True
    if not one.binds or _is_main(one.node):
        return False
    return name in one.binds or not _uses(one.node, name)


def _sets(node: ast.stmt) -> bool:
    """Whether a statement sets an attribute or an item, or calls what sets a limit."""
    if isinstance(node, ast.Assign):
        return any(isinstance(one, ast.Attribute | ast.Subscript) for one in node.targets)
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    return isinstance(called, ast.Attribute) and called.attr.startswith(_SETTINGS)


def _uses(node: ast.AST, name: str) -> bool:
    names = (one for one in ast.walk(node) if isinstance(one, ast.Name))
    return any(one.id == name and isinstance(one.ctx, ast.Load) for one in names)


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in {
        one.id for one in ast.walk(node.test) if isinstance(one, ast.Name)
    }


def helpers(own: Sequence[Statement], pool: Sequence[Statement], name: str) -> list[Statement]:
    """Returns the statements of other blocks that a function needs, the last ones before it."""
    chosen: list[Statement] = []
    at = pool.index(own[0]) if own[0] in pool else len(pool)
    others = [one for one in enumerate(pool) if one[1] not in own and _helps(one[1], name)]
    while True:
        known = [*chosen, *own]
        needed = free(known) - {bound for one in known for bound in one.binds}
        found = []
        for needs in sorted(needed):
            having = [(n, one) for n, one in others if needs in one.binds or "*" in one.binds]
            before = [one for n, one in having if n < at]
            found += before[-1:] or [one for _, one in having][:1]
        more = [one for one in dict.fromkeys(found) if one not in chosen]
        if not more:
            return sorted(chosen, key=pool.index)
        chosen += more


def assembled(own: Sequence[Statement]) -> str:
    """Returns the program of statements, with those first that must be."""
    first = [one for one in own if _is_future(one.node)]
    return "\n\n".join(one.code for one in (*first, *(o for o in own if not _is_future(o.node))))


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def free(own: Sequence[Statement]) -> set[str]:
    """Returns the names that statements take from outside of themselves."""
    found: set[str] = set()
    for one in own:
        tables = [symtable.symtable(one.code, "answer", "exec")]
        for table in tables:
            tables += table.get_children()
            top = table.get_type() == "module"
            found |= {
                symbol.get_name()
                for symbol in table.get_symbols()
                if (symbol.is_global() or top) and symbol.is_referenced()
            }
    return found - set(dir(builtins)) - {"__name__"}


def _bound(statement: ast.AST) -> Iterator[str]:
    left = [statement]
    while left:
        node = left.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif not isinstance(node, ast.Lambda) and (
            not isinstance(node, ast.AnnAssign) or node.value is not None
        ):
            left += ast.iter_child_nodes(node)


def beginning(prompt: str, name: str) -> tuple[str, str]:
    """Returns what a prompt has before its function, and the indentation of the function's body."""
    for body in ("", "    pass", "\tpass", "  pass", "        pass"):
        code = f"{prompt.rstrip()}\n{body}\n"
        made = definitions(statements(code), name) if compiles(code) else []
        if made:
            first, lines = made[-1].body[0], code.split("\n")
            start = min([made[-1].lineno, *(one.lineno for one in made[-1].decorator_list)])
            line = lines[first.lineno - 1]
            blank = line[: len(line) - len(line.lstrip())]
            return "\n".join(lines[: start - 1]), blank or "    "
    return "", "    "


def definitions(block: Sequence[Statement], name: str) -> list[Function]:
    """Returns the functions of a name in a block, in classes and conditions as well."""
    found = [node for one in block for node in ast.walk(one.node) if isinstance(node, FUNCTIONS)]
    return [node for node in found if node.name == name]


def outside_of_its_class(own: Sequence[Statement], name: str) -> str:
    """Returns the statement that makes a method a function, empty if there is a function."""
    if any(name in one.binds for one in own):
        return ""
    holders = [one.node for one in own if isinstance(one.node, ast.ClassDef)]
    for holder in reversed(holders):
        for method in holder.body:
            if isinstance(method, FUNCTIONS) and method.name == name:
                first = next((one.arg for one in method.args.args), "")
                plain = first != "self" or bool(method.decorator_list)
                return f"\n{name} = {holder.name}{'' if plain else '()'}.{name}\n"
    return ""


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes of a function that are not of another one in it."""
    left = [node]
    while left:
        yield (one := left.pop())
        if one is node or not isinstance(one, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            left += ast.iter_child_nodes(one)


def returns(node: ast.AST) -> bool:
    """Whether a function, or a statement of it, gives something back or raises."""
    kinds = (ast.Return, ast.Yield, ast.YieldFrom, ast.Raise)
    return any(isinstance(one, kinds) for one in _inside(node))


def does(function: Function) -> bool:
    """Whether a function is more than a place for one."""
    nothing = (ast.Pass, *FUNCTIONS, ast.ClassDef)
    for one in function.body:
        if isinstance(one, ast.Raise):
            if "NotImplementedError" not in ast.dump(one):
                return True
        elif isinstance(one, ast.Expr):
            if not isinstance(one.value, ast.Constant | ast.Name):
                return True
        elif not isinstance(one, nothing):
            return True
    return False
