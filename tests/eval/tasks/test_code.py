# ruff: noqa: E501 - an answer is easier to read on one line
"""Code is taken from answers as a careful reader takes it, whatever surrounds it."""

from __future__ import annotations

import random
import time

import pytest
from markdown_it import MarkdownIt

from dllm.eval.tasks.answers import parts
from dllm.eval.tasks.dataset import Record
from dllm.eval.tasks.humaneval import complete, program

PROMPT = '''from typing import List


def add_all(xs: List[int]) -> int:
    """Add all.
    >>> add_all([1, 2])
    3
    """
'''
TESTS = "def check(f):\n    assert f([1, 2]) == 3\n    assert f([]) == 0\n"
RECORD: Record = {"prompt": PROMPT, "entry_point": "add_all", "test": TESTS}
BODY = "    return sum(xs)\n"
WHOLE = f"def add_all(xs):\n{BODY}"
WRONG = "def add_all(xs):\n    return 7\n"
STUB = f"{PROMPT}    pass\n"
LOOP = "total = 0\nfor x in xs:\n    total += x\nreturn total\n"


def fenced(code: str, info: str = "python", fence: str = "```") -> str:
    return f"{fence}{info}\n{code}{fence}"


def shifted(text: str, before: str) -> str:
    return "".join(f"{before}{line}\n" for line in text.split("\n"))


def passes(text: str, record: Record = RECORD) -> bool:
    found = complete(record, text)
    try:
        exec(compile(program(record, found.code), "answer", "exec"), {"__name__": "answer"})
    except BaseException:  # noqa: BLE001 - whatever an answer raises is a failure
        return False
    return True


FENCED = {
    "upper case": fenced(WHOLE, "Python3"),
    "py": fenced(WHOLE, "py"),
    "blank before the language": fenced(WHOLE, " python"),
    "attributes": fenced(WHOLE, "{.python .numberLines startFrom=1}"),
    "title": fenced(WHOLE, 'python title="a.py"'),
    "tildes": fenced(WHOLE, fence="~~~"),
    "four": fenced(WHOLE, fence="````"),
    "longer at the end": f"```python\n{WHOLE}`````",
    "five tildes": fenced(WHOLE, fence="~~~~~"),
    "indented by three": shifted(fenced(WHOLE), "   "),
    "indented by six": shifted(fenced(WHOLE), "      "),
    "closing one indented": f"```python\n{WHOLE}   ```\nIt adds.",
    "in a list": "- Code:\n" + shifted(fenced(WHOLE), "  ") + "\n- Done.",
    "on a marker's line": "1. " + shifted(fenced(WHOLE), "   ")[3:],
    "list without its indentation": f"1. Code:\n   ```python\n{WHOLE}   ```\n2. Done.",
    "quoted": shifted(fenced(WHOLE), "> "),
    "quoted without a blank": shifted(fenced(WHOLE), ">"),
    "quoted list": shifted("- a\n\n" + shifted(fenced(WHOLE), "  "), "> "),
    "not closed": f"Sure.\n```python\n{WHOLE}",
    "not closed, cut off": f"```python\n{WHOLE}\nprint(add_all([1, 2",
    "closed behind the code": f"```python\n{WHOLE.rstrip()}```\nIt adds.",
    "prose behind the closing fence": f"```python\n{WHOLE.rstrip()}``` It adds.",
    "opened behind a colon": f"Here: ```python\n{WHOLE}```",
    "code behind the language": f"```python {WHOLE}```",
    "code in place of the language": f"```{WHOLE}```",
    "opened twice": f"```python\nimport os\n```python\n{WHOLE}```",
    "in one line": "```def add_all(xs): return sum(xs)```",
    "a fence in its docstring": fenced(
        'def add_all(xs):\n    """Add.\n\n    ```\n    add_all([])\n    ```\n    """\n    return sum(xs)\n'
    ),
    "a fence in a text": fenced(f"MARK = '''```'''.split('```')\n{WHOLE}"),
    "Windows": fenced(WHOLE).replace("\n", "\r\n"),
    "old Mac": fenced(WHOLE).replace("\n", "\r"),
    "byte order mark": "\ufeff" + fenced(WHOLE),
    "hard blanks": fenced(WHOLE.replace("    ", "\xa0" * 4)),
    "tabs": fenced(WHOLE.replace("    ", "\t")),
    "tabs and blanks": fenced(
        "def add_all(xs):\n\tt = 0\n        for x in xs:\n\t    t += x\n\treturn t\n"
    ),
    "prompt of the interpreter": fenced(
        ">>> def add_all(xs):\n...     return sum(xs)\n...\n>>> add_all([1])\n1\n"
    ),
    "whole block indented": fenced(shifted(WHOLE, "    ")),
    "a class of HTML": f"<pre><code>\n{WHOLE}</code></pre>",
    "behind an end token": fenced(WHOLE) + "<|im_end|>",
    "prose in the block": fenced(f"Here it is:\n\n{WHOLE}\nIt adds.\n"),
    "other language last": fenced(WHOLE) + "\n" + fenced("add_all 1 2\n3\n", "bash"),
}
CHOSEN = {
    "stub first": fenced(STUB) + "\nSolution:\n" + fenced(WHOLE),
    "stub last": fenced(WHOLE) + "\nof\n" + fenced(STUB),
    "prompt last": fenced(WHOLE) + "\nof\n" + fenced(PROMPT),
    "not implemented": fenced(WHOLE) + fenced("def add_all(xs):\n    raise NotImplementedError\n"),
    "draft first": fenced(WRONG) + "\nNo:\n" + fenced(WHOLE),
    "draft in prose": WRONG + "\nThat is wrong.\n\n" + WHOLE,
    "fenced, then prose": fenced(WRONG) + "\nNo:\n\n" + WHOLE,
    "prose, then fenced": WRONG + "\nNo:\n\n" + fenced(WHOLE),
    "broken last": fenced(WHOLE) + "\nor\n" + fenced("def add_all(xs):\n    return sum(xs\n"),
    "use last": fenced(WHOLE) + "\nUse:\n" + fenced("print(add_all([1, 2]))\n"),
    "import last": fenced(WHOLE) + "\nUse:\n" + fenced("from answer import add_all\n"),
    "thought": "<think>\n" + fenced(WRONG) + "\n</think>\n" + fenced(WHOLE),
    "thought, then a body": "<think>\n" + fenced(WRONG) + "\n</think>\n" + BODY,
    "only thought": "<think>\n" + fenced(WHOLE) + "\n</think>\nThat is all.",
    "body behind a stub": fenced(PROMPT) + "\nwith\n" + fenced(BODY),
    "twice in one block": fenced(f"{WRONG}\n\n{WHOLE}"),
}
TOGETHER = {
    "import alone": fenced("import math\n")
    + "then\n"
    + fenced("def add_all(xs):\n    return int(math.fsum(xs))\n"),
    "import in prose": "import math\n\nNow:\n\ndef add_all(xs):\n    return int(math.fsum(xs))\n",
    "helper before": fenced("def plus(a, b):\n    return a + b\n")
    + fenced(
        "def add_all(xs):\n    t = 0\n    for x in xs:\n        t = plus(t, x)\n    return t\n"
    ),
    "helper behind": fenced("def add_all(xs):\n    return total(xs)\n")
    + "\nwhere\n"
    + fenced("def total(xs):\n    return sum(xs)\n"),
    "helper of a helper": fenced("ZERO: int = 0\n")
    + fenced("def start():\n    return ZERO\n")
    + fenced("def add_all(xs):\n    return sum(xs, start())\n"),
    "decorator": fenced("def same(f):\n    return f\n") + fenced(f"@same\n{WHOLE}"),
    "decorator with others": fenced(
        f"import functools\n\n@functools.wraps(len)\n@staticmethod\n{WHOLE}".replace(
            "@staticmethod\n", ""
        )
    ),
    "future": fenced(f"from __future__ import annotations\n\n{WHOLE}"),
    "future in another": fenced("import os\nfrom __future__ import annotations\n") + fenced(WHOLE),
    "future behind a text": fenced(f'"""Adds."""\nfrom __future__ import annotations\n{WHOLE}'),
    "constant": fenced("START: int = 0\n\ndef add_all(xs):\n    return sum(xs, START)\n"),
    "constant behind": fenced(
        "def add_all(xs):\n    return sum(xs, START)\n\nSTART = 0\nprint(add_all([1]))\n"
    ),
    "try": fenced(
        f"try:\n    import nothing_of_this_name\nexcept ImportError:\n    nothing_of_this_name = None\n{WHOLE}"
    ),
    "two halves": fenced("def add_all(xs):\n    total = 0\n")
    + "\nthen\n"
    + fenced("    for x in xs:\n        total += x\n    return total\n"),
    "a use that fails": fenced(f"{WHOLE}\nassert add_all([1]) == 2\n"),
    "a use that waits": fenced(f"{WHOLE}\nprint(add_all([int(input())]))\n"),
    "a main": fenced(f'{WHOLE}\nif __name__ == "answer":\n    raise SystemExit(1)\n'),
    "local name of another block": fenced("total = undefined_name\n")
    + fenced("def add_all(xs):\n    total = sum(xs)\n    return total\n"),
    "recursion between blocks": fenced("def rest(xs):\n    return add_all(xs[1:])\n")
    + fenced("def add_all(xs):\n    return xs[0] + rest(xs) if xs else 0\n"),
    "everything of a module": fenced("from math import *\n")
    + fenced("def add_all(xs):\n    return int(fsum(xs))\n"),
    "async helper": fenced(
        "import asyncio\n\nasync def total(xs):\n    return sum(xs)\n\ndef add_all(xs):\n    return asyncio.run(total(xs))\n"
    ),
}
NAMED = {
    "lambda": fenced("add_all = lambda xs: sum(xs)\n"),
    "annotated lambda": fenced(
        "from typing import Callable\nadd_all: Callable = lambda xs: sum(xs)\n"
    ),
    "alias": fenced("def solve(xs):\n    return sum(xs)\nadd_all = solve\n"),
    "alias in another block": fenced("def solve(xs):\n    return sum(xs)\n")
    + fenced("add_all = solve\n"),
    "alias in prose": "def solve(xs):\n    return sum(xs)\n\nadd_all = solve\n\nDone.",
    "partial": fenced("from functools import partial, reduce\nadd_all = partial(sum, start=0)\n"),
    "wrapped": fenced(f"import functools\n{WHOLE}\nadd_all = functools.wraps(len)(add_all)\n"),
    "two blanks": fenced("def  add_all (xs):\n    return sum(xs)\n"),
    "broken line": fenced("def add_all(\n    xs,\n):\n    return sum(xs)\n"),
    "class": fenced("class Solution:\n    def add_all(self, xs):\n        return sum(xs)\n"),
    "static": fenced(
        "class Solution:\n    @staticmethod\n    def add_all(xs):\n        return sum(xs)\n"
    ),
    "class method": fenced(
        "class Solution:\n    @classmethod\n    def add_all(cls, xs):\n        return sum(xs)\n"
    ),
    "class without self": fenced("class Solution:\n    def add_all(xs):\n        return sum(xs)\n"),
    "class with helper": fenced(
        "class Solution:\n    def zero(self):\n        return 0\n\n    def add_all(self, xs):\n        return sum(xs, self.zero())\n"
    ),
    "class used": fenced(
        "class Solution:\n    def add_all(self, xs):\n        return sum(xs)\n\nprint(Solution().add_all([1]))\nadd_all = Solution().add_all\n"
    ),
    "class in prose": "The class:\n\nclass Solution:\n    def add_all(self, xs):\n        return sum(xs)\n\nDone.",
    "conditional": fenced(f"if True:\n    {WHOLE.replace(chr(10), chr(10) + '    ')}\n"),
    "in one line": "def add_all(xs): return sum(xs)",
    "span": "Use `add_all = lambda xs: sum(xs)` for that.",
}
PROSE = {
    "before": f"Here is the function:\n\n{WHOLE}",
    "right before": f"Sure! This adds:\n{WHOLE}",
    "on its line": f"Here it is: {WHOLE}",
    "behind": f"{WHOLE}\nThis adds all numbers. It is fast.",
    "right behind": f"{WHOLE}This adds all numbers.",
    "a word behind": f"{WHOLE}\nDone",
    "both, with imports": f"Solution\n\nfrom typing import List\nimport math\n\n{WHOLE}\nNote: it is O(n).",
    "heading": f"# Solution\n\n{WHOLE}\n## Complexity\n\nTime = O(n)\n",
    "indented": "Code:\n\n" + shifted(WHOLE, "    ") + "\nDone.",
    "numbered": "1. First, the code:\n" + shifted(WHOLE, "   ") + "2. Done.",
    "prompt again": PROMPT + BODY,
    "prompt again, then prose": f"{PROMPT}{BODY}\nIt adds.",
    "interpreter": ">>> def add_all(xs):\n...     return sum(xs)\n...\n>>> add_all([1, 2])\n3\n",
    "if and else": "def zero(x):\n    return 0\n\nif True:\n    START = 0\nelse:\n    START = 1\n\ndef add_all(xs):\n    return sum(xs, START)\n",
    "tags": f"[PYTHON]\n{WHOLE}[/PYTHON]",
}
BODIES = {
    "as it was": BODY,
    "no indentation": "return sum(xs)\n",
    "a loop without": LOOP,
    "first line short": "   total = 0\n    for x in xs:\n        total += x\n    return total\n",
    "first line stripped": "total = 0\n    for x in xs:\n        total += x\n    return total\n",
    "first line deep": "        total = 0\n    for x in xs:\n        total += x\n    return total\n",
    "two blanks": "  total = sum(xs)\n  return total\n",
    "eight": "        return sum(xs)\n",
    "tab": "\treturn sum(xs)\n",
    "tabs in a loop": "\ttotal = 0\n\tfor x in xs:\n\t\ttotal += x\n\treturn total\n",
    "a loop that lost its first indentation": "for x in [1]:\n        pass\n    return sum(xs)\n",
    "one block": "if True:\n        return sum(xs)\n",
    "fenced": fenced(BODY),
    "fenced, stripped": fenced(LOOP),
    "fenced, first line short": fenced(
        "   total = 0\n    for x in xs:\n        total += x\n    return total\n"
    ),
    "prose before": f"The body is\n{BODY}",
    "prose behind": f"{BODY}\nThis adds all numbers.",
    "prose around a stripped one": f"The body is:\n\n{LOOP}\nThis adds all numbers.",
    "more functions behind": f"{BODY}\n\ndef other():\n    return 1\n",
    "docstring first": f'    """Adds."""\n{BODY}',
    "Windows": BODY.replace("\n", "\r\n"),
    "wrong one first": fenced("    return 7\n") + "\nNo:\n" + fenced(BODY),
    "yield": "    yield 1\n    return\n",
}
ALL = {
    f"{kind}: {name}": text
    for kind, texts in (
        *(("fence", FENCED), ("choice", CHOSEN), ("together", TOGETHER), ("name", NAMED)),
        *(("prose", PROSE), ("body", {k: v for k, v in BODIES.items() if k != "yield"})),
    )
    for name, text in texts.items()
}


@pytest.mark.parametrize("name", ALL)
def test_a_right_answer_passes(name: str) -> None:
    assert passes(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_the_same_answer_with_another_sum_fails(name: str) -> None:
    """So that it is the answer's own code that passes."""
    text = ALL[name]
    for right, wrong in (("sum(", "max("), ("+= x", "+= 2 * x"), ("a + b", "a - b")):
        text = text.replace(right, wrong)
    if text != ALL[name]:
        assert not passes(text.replace("return xs[0] +", "return 2 *"))


HOSTILE = {
    "brackets": fenced("(" * 20_000),
    "signs": fenced("-" * 20_000 + "1"),
    "sums": fenced("x = " + "1+" * 20_000 + "1\n" + WHOLE),
    "attributes": fenced("x = a" + ".b" * 20_000 + "\n" + WHOLE),
    "null": fenced("\0" + WHOLE),
    "surrogate": fenced("x = '\ud800'\n" + WHOLE),
    "fences": "```\n" * 2_000,
    "open quotes": "def add_all(xs):\n" * 1_500 + '"""',
    "prose": "for all of us this is a line = of text that goes on (\n" * 1_500,
    "spans": "`" * 5_001 + "a" + "`" * 5_000 + "`a" * 5_000,
    "stops of code": f"{WHOLE}\nx = 1\n\n" * 300,
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_read_in_time(name: str) -> None:
    begun = time.process_time()
    complete(RECORD, HOSTILE[name])
    assert time.process_time() - begun < 20


def test_a_name_that_is_a_pattern_is_a_name() -> None:
    record = {**RECORD, "entry_point": "add.*(", "prompt": "def f("}
    assert complete(record, WHOLE).rung == "text"


def test_a_prompt_with_decorator_and_helpers() -> None:
    prompt = (
        "import functools\n\ndef two():\n  return 2\n\n@functools.cache\ndef f(x):\n  'Twice.'\n"
    )
    record: Record = {
        "prompt": prompt,
        "entry_point": "f",
        "test": "def check(f):\n    assert f(2) == 4\n",
    }
    for text in (
        "return two() * x",
        fenced("def f(x):\n    return two() * x\n"),
        "    return two() * x",
    ):
        assert passes(text, record)


def test_a_body_that_changes_its_argument() -> None:
    record: Record = {
        "prompt": "def turn(xs):\n    '''Turn around.'''\n",
        "entry_point": "turn",
        "test": "def check(f):\n    xs = [1, 2]\n    f(xs)\n    assert xs == [2, 1]\n",
    }
    for text in ("    xs.reverse()\n", "xs[:] = xs[::-1]", fenced("xs.reverse()\n")):
        assert passes(text, record)


def test_fences_are_those_of_commonmark() -> None:
    """On documents of well-formed fences, between prose, in quotes and lists."""
    source, parser = random.Random(0), MarkdownIt("commonmark")
    for _ in range(300):
        blocks = []
        for number in range(source.randint(1, 4)):
            fence = source.choice("`~") * source.randint(3, 5)
            code = "".join(f"x{number}{'    ' * n} = {n}\n" for n in range(source.randint(0, 3)))
            text = (
                f"{fence}{source.choice(('', 'python', ' Py x=1', '{.python}'))}\n{code}{fence}\n"
            )
            before = source.choice(("", " ", "   ", "> ", ">", "> > "))
            text = "".join(f"{before}{line}\n" for line in text.splitlines())
            if source.random() < 0.3:
                text = "".join(f"   {line}\n" for line in text.splitlines()).replace(
                    "   ", "1. ", 1
                )
            blocks.append(f"Prose {number}.\n\n{text}\n")
        document = "".join(blocks)
        tokens = [token for token in parser.parse(document) if token.type == "fence"]
        ours = [part for part in parts(document) if part.fenced]
        found = [(part.code.strip("\n"), part.info) for part in ours]
        assert found == [(token.content.strip("\n"), token.info.strip()) for token in tokens], (
            document
        )
