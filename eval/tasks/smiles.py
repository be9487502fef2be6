"""Molecules in words, as SMILES, from a file in the form of eth-sri/smiles-eval (2508.10111).

An object a line: `input`, the words, and `output`, the SMILES of the right molecule. Each answer is
held to a grammar, up to a depth of branches, unless a run decodes without. Judged is whether the
grammar has the answer, whether it is the text that was asked for, and, where RDKit is installed,
whether it is that molecule in another spelling.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

from dllm.constraints.grammar import Grammar
from dllm.eval.tasks.dataset import Row, checked, rows
from dllm.eval.tasks.task import Judgement, Problem, ReadTask, Task, TaskOptions, choose

_logger = logging.getLogger(__name__)

STYLES = {"chat": True, "plain": False}  # whether prompts are chats
DEFAULT_STYLE = "chat"
DEPTH = 6  # of branches inside branches in what is decoded; what is judged may have any
_KEYS = ("input", "output")
_ASKED = "Write the SMILES of the molecule that is described. Answer with it alone.\n\n{}"
_FENCE = re.compile(r"(?s)(?:```|~~~)(?:smiles)?[ \t]*\n(.*?)(?:\n[ \t]*(?:```|~~~)|\Z)")
_ELEMENTS = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As
    Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu
    Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np
    Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og b c n o p s
    se as
"""
# What the published checker goes by: the grammar of opensmiles.org without classes of chirality,
# wildcards and aromatic bonds. Whether rings are closed and valences are right is not looked at.
GRAMMAR = rf"""
start: line
line: atom part*
part: BOND? (atom | RING)
    | "." atom
    | "(" branch+ ")"
branch: (BOND | ".")? line
atom: BARE | "[" ISOTOPE? ELEMENT CHIRAL? COUNT? CHARGE? MAP? "]"
BOND: /[-=#$\/\\]/
RING: /[0-9]|%[0-9][0-9]/
BARE: /Br|Cl|At|Ts|[BCNOPSFI]|[bcnops]/
ISOTOPE: /[0-9]{{1,3}}/
ELEMENT: /{"|".join(sorted(_ELEMENTS.split(), reverse=True))}/
CHIRAL: /@@?/
COUNT: /H[0-9]?/
CHARGE: /\+(\+|1[0-5]|[0-9])?|-(-|1[0-5]|[0-9])?/
MAP: /:[0-9]{{1,3}}/
"""


@dataclass(frozen=True)
class Judge:
    """Compares an answer with the right molecule."""

    molecules: bool  # whether molecules are compared, and not only their texts

    def __call__(self, problem: Problem, text: str) -> Judgement:
        """Returns whether an answer is the molecule, and whether it is SMILES at all."""
        answer = _stated(text)
        details = {"valid": is_smiles(answer), "exact": answer == problem.answer}
        correct = details["exact"]
        if self.molecules:
            correct = details["molecule"] = details["valid"] and same(answer, problem.answer)
        return Judgement(correct, details, extracted=details["valid"])


def is_smiles(text: str) -> bool:
    """Whether the grammar has a text, with branches of any depth."""
    from lark.exceptions import LarkError  # of the extra dllm[structured]

    try:
        _parser().parse(text)
    except LarkError:
        return False
    return True


def same(one: str, other: str) -> bool:
    """Whether two SMILES are of one molecule, stereochemistry included; no text of none is."""
    from rdkit import Chem, rdBase  # of the extra dllm[smiles]

    with rdBase.BlockLogs():  # what it cannot read is a score here, and no error
        made = [Chem.MolFromSmiles(text) for text in (one, other)]
        if any(molecule is None for molecule in made):
            return False
        first, second = (Chem.MolToSmiles(molecule) for molecule in made)
    return bool(first == second)


def read_task(options: TaskOptions) -> Task:
    """Returns the task with the problems of the file."""
    if options.data is None:
        raise ValueError(
            f"smiles: name the file with --data FILE, JSON lines with {', '.join(_KEYS)}; "
            'datasets.load_dataset("eth-sri/smiles-eval", split="test").to_json(FILE) writes the '
            "published one"
        )
    if options.shots is not None or options.examples is not None or options.run_code:
        raise ValueError("--shots, --examples, --run-code: smiles is asked as it is in the file")
    style = options.style or DEFAULT_STYLE
    chat = choose("smiles", "style", style, STYLES)
    try:
        constraint = Grammar(GRAMMAR, depth=DEPTH)
    except ImportError as error:
        raise ValueError(f"smiles is judged by a grammar: {error}") from None
    molecules = find_spec("rdkit") is not None
    if not molecules:
        _logger.warning(
            "RDKit is not installed: an answer counts as right if it is the right text, and no "
            "other spelling of its molecule; dllm[smiles] compares molecules"
        )
    found = rows(options.data, "--data", f"JSON lines with {', '.join(_KEYS)}")
    problems = [_problem(number, row, constraint, chat) for number, row in enumerate(found)]
    task = TASK.of(problems, Judge(molecules), style, {"shots": 0})
    return replace(task, options={**task.options, "compared": "molecule" if molecules else "text"})


TASK = ReadTask("smiles", "molecules in words, as SMILES", "eth-sri/smiles-eval", read_task)


def _problem(number: int, row: Row, constraint: Grammar, chat: bool) -> Problem:
    missing = [key for key in _KEYS if key not in row.fields]
    if missing:
        there = ", ".join(row.fields) or "none"
        raise ValueError(
            f"{row.where} has no field {missing[0]!r}: it must be an object with "
            f"{', '.join(_KEYS)}; its fields are: {there}"
        )
    given, answer = (checked(row.fields[key], f"{row.where}, field {key!r}") for key in _KEYS)
    prompt, answer = _ASKED.format(given), answer.strip()
    if not answer:
        raise ValueError(f"{row.where}, field 'output' is empty: it must be a SMILES text")
    turns = (("user", prompt),) if chat else ()
    return Problem(f"smiles-{number}", prompt, answer, answer, turns, constraint=constraint)


def _stated(text: str) -> str:
    """Returns the SMILES that an answer states: all of it, or else its last fenced block."""
    whole = text.strip()
    fenced = _FENCE.findall(text)
    return whole if is_smiles(whole) or not fenced else fenced[-1].strip()


@cache
def _parser() -> Any:
    from lark import Lark  # of the extra dllm[structured]

    return Lark(GRAMMAR, parser="earley", lexer="dynamic_complete")
