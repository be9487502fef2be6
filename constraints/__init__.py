"""What an answer may say: languages, and the exact sets of tokens that keep a canvas in them."""

from __future__ import annotations

if __name__ != "dllm.constraints":
    raise ImportError("this folder is a part of dllm: import dllm.constraints, not constraints")

from dllm.constraints.automaton import ByteAutomaton, TokenAutomaton
from dllm.constraints.base import Constraint
from dllm.constraints.choice import Choice
from dllm.constraints.grammar import Grammar
from dllm.constraints.json_schema import JsonSchema
from dllm.constraints.regex import Regex
from dllm.constraints.span import ConstraintSpan
from dllm.constraints.stored import cache_folder
from dllm.constraints.template import Hole, Template
from dllm.constraints.vocabulary import Ends
from dllm.constraints.written import from_plain, to_plain

__all__ = [
    "ByteAutomaton",
    "Choice",
    "Constraint",
    "ConstraintSpan",
    "Ends",
    "Grammar",
    "Hole",
    "JsonSchema",
    "Regex",
    "Template",
    "TokenAutomaton",
    "cache_folder",
    "from_plain",
    "to_plain",
]
