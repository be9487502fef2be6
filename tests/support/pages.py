"""The pages of the documentation: their code, their tables, and the files that guides add."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tests.support import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
ADDING = DOCS / "guides" / "add_a_scheduler.md"
NAME = "spaced_margin"  # the scheduler that the walk-through adds
FILES = {  # guide -> the file that its first block is, which the other blocks import
    ADDING: NAME,
    DOCS / "guides" / "add_a_cache.md": "lookback",
    DOCS / "guides" / "add_a_family.md": "fable",
    DOCS / "guides" / "add_a_task.md": "sorting",
}
COMPILED_ONLY = "<!-- not run"  # stands before a block that the tests cannot run


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    code: str
    line: int  # of the page, from 0, at which the code begins
    kind: str  # what a fence says, "python" for an indented block that begins with an import
    runs: bool


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    # A fence with what is between, or lines that are indented by four after an empty one.
    pattern = r"^```(\w*)\n(.*?)^```$|(?<=\n\n)((?: {4}[^\n]*\n|\n(?= {4}))+)"
    found = []
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        kind, code = match[1], match[2]
        if code is None:
            code = re.sub(r"^ {4}", "", match[3], flags=re.MULTILINE)
            kind = "python" if re.match(r"from |import ", code) else ""
        line = text.count("\n", 0, match.start(2) if match[2] is not None else match.start(3))
        before = text[: match.start()].rstrip().rpartition("\n")[2]
        found.append(Block(code, line, kind, not before.startswith(COMPILED_ONLY)))
    return found


def module_of(page: Path, folder: Path) -> ModuleType:
    """Runs the Python of a page as one module, each line at the number that it has in the page.

    The first block of a walk-through is a file of its own, which is there already.
    """
    lines = [""] * (page.read_text(encoding="utf-8").count("\n") + 1)
    blocks = [block for block in blocks_of(page) if block.kind == "python"]
    for block in blocks[1:] if page in FILES else blocks:
        compile(block.code, f"{page}, line {block.line + 1}", "exec")
        if block.runs:
            code = block.code.splitlines()
            lines[block.line : block.line + len(code)] = code
    name = page.stem.lower().replace(".", "_")
    file = folder / f"code_of_{name}.py"
    file.write_text("\n".join(lines), encoding="utf-8")
    return importlib.import_module(file.stem)


def tables_of(page: Path) -> dict[str, dict[str, str]]:
    """Returns, by heading, the tables that begin with name and shape: name -> shape."""
    found = {}
    for heading, part in re.findall(
        r"^##+ (.*)\n((?:(?!##).*\n)*)", page.read_text(), re.MULTILINE
    ):
        if "| name | shape |" in part:
            found[heading] = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", part, re.MULTILINE))
    return found
