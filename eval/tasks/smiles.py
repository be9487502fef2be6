"""Molecules from their descriptions, as SMILES, from a file in the form of eth-sri/smiles-eval.

An object a line: `input`, the description, and `output`, a SMILES of the molecule; `instance_id`
and `difficulty_category` are kept if they are there (arXiv 2508.10111).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from dllm.constraints.grammar import Grammar
from dllm.eval.tasks.dataset import Row, checked, rows
from dllm.eval.tasks.task import Judgement, Problem, ReadTask, Task, TaskOptions, choose

STYLES = {"chat": True, "plain": False}  # whether prompts are chats
DEFAULT_STYLE = "chat"
_KEYS = ("input", "output")
_ASKED = (
    "Write the SMILES of the molecule that is described. Answer with the SMILES alone, with all "
    "its charges, isotopes, rings and stereochemistry.\n\n{}"
)
# OpenSMILES (opensmiles.org, formal grammar). Which ring numbers belong together, valences and
# aromatic rings are beyond any context-free grammar: `molecule` judges them.
GRAMMAR = r"""
start: chain
chain: unit (LINK? unit)*
unit: atom ring* branch*
branch: "(" LINK? chain ")"
ring: BOND? (DIGIT | "%" DIGIT DIGIT)
atom: ORGANIC | "[" ISOTOPE? SYMBOL CHIRAL? HYDROGEN? charge? CLASS? "]"
charge: "++" | "--" | /[+-](1[0-5]|[0-9])?/
LINK: BOND | "."
BOND: "-" | "=" | "#" | "$" | ":" | "/" | "\\"
DIGIT: /[0-9]/
ORGANIC: "B" | "Br" | "C" | "Cl" | "N" | "O" | "P" | "S" | "F" | "I" | /[bcnops*]/
ISOTOPE: /[1-9][0-9]{0,2}/
SYMBOL: ELEMENT | /[bcnops*]/ | "se" | "as"
CHIRAL: "@" | "@@" | /@(TH|AL)[12]/ | /@SP[123]/
HYDROGEN: /H[0-9]?/
CLASS: /:[0-9]{1,3}/
ELEMENT: "H" | "He" | "Li" | "Be" | "B" | "C" | "N" | "O" | "F" | "Ne" | "Na" | "Mg" | "Al"
    | "Si" | "P" | "S" | "Cl" | "Ar" | "K" | "Ca" | "Sc" | "Ti" | "V" | "Cr" | "Mn" | "Fe"
    | "Co" | "Ni" | "Cu" | "Zn" | "Ga" | "Ge" | "As" | "Se" | "Br" | "Kr" | "Rb" | "Sr" | "Y"
    | "Zr" | "Nb" | "Mo" | "Tc" | "Ru" | "Rh" | "Pd" | "Ag" | "Cd" | "In" | "Sn" | "Sb" | "Te"
    | "I" | "Xe" | "Cs" | "Ba" | "Hf" | "Ta" | "W" | "Re" | "Os" | "Ir" | "Pt" | "Au" | "Hg"
    | "Tl" | "Pb" | "Bi" | "Po" | "At" | "Rn" | "Fr" | "Ra" | "Rf" | "Db" | "Sg" | "Bh" | "Hs"
    | "Mt" | "Ds" | "Rg" | "Cn" | "Nh" | "Fl" | "Mc" | "Lv" | "Ts" | "Og" | "La" | "Ce" | "Pr"
    | "Nd" | "Pm" | "Sm" | "Eu" | "Gd" | "Tb" | "Dy" | "Ho" | "Er" | "Tm" | "Yb" | "Lu" | "Ac"
    | "Th" | "Pa" | "U" | "Np" | "Pu" | "Am" | "Cm" | "Bk" | "Cf" | "Es" | "Fm" | "Md" | "No"
    | "Lr"
"""
DEPTH = 3  # branches inside each other that answers are held to
_FENCE = re.compile(r"(?s)(?:```|~~~)(?:smiles)?[ \t]*\n(.*?)(?:\n[ \t]*(?:```|~~~)|\Z)")


def read_task(options: TaskOptions) -> Task:
    """Returns the task with the problems of the file."""
    if options.data is None:
        raise ValueError(
            f"smiles: name the file with --data FILE, JSON lines with {' and '.join(_KEYS)}; "
            'datasets.load_dataset("eth-sri/smiles-eval", split="test").to_json(FILE) writes the '
            "published one"
        )
    if options.shots is not None or options.examples is not None or options.run_code:
        raise ValueError("--shots, --examples, --run-code: smiles is asked as it is in the file")
    style = options.style or DEFAULT_STYLE
    chat = choose("smiles", "style", style, STYLES)
    same = _same_molecule()
    constraint = Grammar(GRAMMAR, depth=DEPTH)
    found = rows(options.data, "--data", f"JSON lines with {' and '.join(_KEYS)}")
    problems = [_problem(number, row, chat, constraint) for number, row in enumerate(found)]
    return TASK.of(problems, partial(judge, same), style, {"shots": 0})


TASK = ReadTask(
    "smiles",
    "molecules from their descriptions, as SMILES",
    "eth-sri/smiles-eval",
    read_task,
)


def judge(same: Callable[[str, str], bool | None], problem: Problem, text: str) -> Judgement:
    """Returns whether an answer is the molecule that was asked for.

    The SMILES is the last fenced block, or else the whole text. `valid` is what its grammar says;
    `molecule` whether RDKit can read it, which looks at rings and valences as well. `same` says
    whether two SMILES are one molecule, None where the first is none.
    """
    smiles = (_FENCE.findall(text)[-1:] or [text])[0].strip()
    details: dict[str, Any] = {"valid": is_valid(smiles), "exact": smiles == problem.answer}
    found = same(smiles, problem.answer) if details["valid"] else None
    details["molecule"] = found is not None
    return Judgement(found is True, details, extracted=bool(smiles))


def is_valid(smiles: str) -> bool:
    """Whether a text is in the grammar of SMILES."""
    from lark.exceptions import UnexpectedInput  # an optional package

    try:
        _parser().parse(smiles)
    except UnexpectedInput:
        return False
    return True


@cache
def _parser() -> Any:
    from lark import Lark  # an optional package

    return Lark(GRAMMAR, parser="earley", lexer="dynamic_complete")


def _same_molecule() -> Callable[[str, str], bool | None]:
    """Returns what says whether two SMILES are one molecule, None where the first is none."""
    try:
        from rdkit import Chem, rdBase  # an optional package
    except ImportError:
        raise ImportError(
            "smiles: answers are compared as molecules, by RDKit: pip install 'dllm[smiles]'"
        ) from None

    def same(given: str, right: str) -> bool | None:
        with rdBase.BlockLogs():  # it would write what is wrong with each answer
            molecules = [Chem.MolFromSmiles(one) for one in (given, right)]
        if molecules[0] is None:
            return None
        if molecules[1] is None:
            return given == right
        first, second = (Chem.MolToSmiles(one) for one in molecules)
        return bool(first == second)

    return same


def _problem(number: int, row: Row, chat: bool, constraint: Grammar) -> Problem:
    missing = [key for key in _KEYS if key not in row.fields]
    if missing:
        there = ", ".join(row.fields) or "none"
        raise ValueError(
            f"{row.where} has no field {missing[0]!r}: it must be an object with "
            f"{' and '.join(_KEYS)}; its fields are: {there}"
        )
    asked, answer = (checked(row.fields[key], f"{row.where}, field {key!r}") for key in _KEYS)
    answer = answer.strip()
    prompt = _ASKED.format(asked)
    turns = (("user", prompt),) if chat else ()
    return Problem(f"smiles-{number}", prompt, answer, answer, turns, constraint=constraint)
