# ruff: noqa: RUF001 - signs that look like others are what is read here
"""The number that an answer states, as a person reads it; scores of lm-eval stay what they are."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from dllm.eval.tasks import gsm8k
from dllm.eval.tasks.answers import stated_number
from dllm.eval.tasks.task import Problem
from tests.support import DATA

OUTPUTS = [json.loads(line) for line in (DATA / "gsm8k_outputs.jsonl").read_text().splitlines()]
ANY = gsm8k.STYLES["zeroshot"]

# text, gold, whether a person says that it is right
READ = [
    ("#### 72.00", "72", True),
    ("#### 72 rolls, of 80", "72", True),
    ("#### 72 rolls, of 80", "80", False),
    ("So she earns $1,234.50.", "1234.5", True),
    ("$\\boxed{70{,}000}$", "70000", True),
    ("\\boxed{70\\,000}", "70000", True),
    ("\\boxed{\\$18}", "18", True),
    ("\\boxed{18\\text{ dollars}}", "18", True),
    ("\\boxed{x = 18}", "18", True),
    ("\\[ \\boxed{\\frac{1}{2}} \\]", "0.5", True),
    ("It is $\\frac{3}{4}$ of a cup.", "0.75", True),
    ("$2\\frac{1}{2}$ hours", "2.5", True),
    ("\\frac12", "1/2", True),
    ("\\dfrac{84}{2} = 42", "42", True),
    ("It takes 2 1/2 hours.", "2.5", True),
    ("2½ hours", "2.5", True),
    ("½", "0.5", True),
    ("-1/2", "-0.5", True),
    ("-1/2", "0.5", False),
    ("The answer is 84/2 = 42.", "42", True),
    ("The answer is −5.", "-5", True),
    ("The answer is –5.", "-5", True),
    ("-$5", "-5", True),
    ("$-5", "-5", True),
    ("It is minus 5 degrees.", "-5", True),
    ("20 - 15 = 5", "5", True),
    ("20-15=5", "-5", False),
    ("Answer - 42", "42", True),
    ("- 42 apples", "42", True),
    ("-42 apples", "-42", True),
    ("50 %", "50", True),
    ("50\\%", "50", True),
    ("50 percent", "50", True),
    ("50%", "0.5", True),
    ("42 km/h", "42", True),
    ("42km", "42", True),
    ("€42", "42", True),
    ("42 €", "42", True),
    ("USD 42", "42", True),
    ("£1,000", "1000", True),
    ("US$42", "42", True),
    ("42$$", "42", True),
    ("$$42$$", "42", True),
    ("\\(42\\)", "42", True),
    ("\\[42\\]", "42", True),
    ("$x=42$.", "42", True),
    ("**42**", "42", True),
    ("__42__", "42", True),
    ("`42`", "42", True),
    ("*42*", "42", True),
    ("**-42**", "-42", True),
    ("1 000", "1000", True),
    ("1\u202f000", "1000", True),
    ("1\u00a0000", "1000", True),
    ("1'000", "1000", True),
    ("1.234.567", "1234567", True),
    ("1.234,56", "1234.56", True),
    ("1,00,000", "100000", True),
    ("42.0", "42", True),
    ("42.5", "42", False),
    ("042.50", "42.5", True),
    (".5", ".5", True),
    ("0.50", "0.5", True),
    ("4.2e1", "42", True),
    ("4.2 \\times 10^1", "42", True),
    ("4.2 × 10¹", "42", True),
    ("10^3", "1000", True),
    ("The final answer is: 42.\n\nLet me know if you have 2 questions.", "42", True),
    ("**Final Answer:** 42", "42", True),
    ("Final answer:\n42", "42", True),
    ("The answer is\n\n$$42$$", "42", True),
    ("### Answer\n\n42", "42", True),
    ("Answer: 42 (6 boxes of 7)", "42", True),
    ("<answer>42</answer>", "42", True),
    ('{"answer": 42}', "42", True),
    ('{"answer": "42"}', "42", True),
    ("The answer is 41. Wait, no. The answer is 42.", "42", True),
    ("Step 1: add 20 and 22.\nStep 2: so it is 42.\n", "42", True),
    ("1. Add 20 and 22.\n2. It is 42.\n3. Done.", "42", True),
    ("#### Step 1\nAdd.\n#### 42", "42", True),
    ("#### 1. Add\n20+22=42\n", "42", True),
    ("<think>is it 7?</think>The answer is 42", "42", True),
    ("42<|im_end|>7", "42", True),
    ("42<eos>7", "42", True),
    ("She has 42 apples (6 bags of 7).", "42", True),
    ("In 3 days she earns 42 dollars.", "42", True),
    ("She earns 42 dollars in the first 3 days.", "42", True),
    ("She pays $42 for 6 books.", "42", True),
    ("She ate 42 of the 80 rolls.", "42", True),
    ("That is a total of 42 rolls.", "42", True),
    ("3 boxes of 14 are 42.", "42", True),
    ("It takes 42 minutes, arriving at 7:30.", "42", True),
    ("On 1/2/2020 she had 42.", "42", True),
    ("She came 1st with 42 points.", "42", True),
    ("The answer is forty-two.", "42", True),
    ("She has seven apples.", "7", True),
    ("There are three hundred of them.", "300", True),
    ("2 million", "2000000", True),
    ("$5 thousand", "5000", True),
    ("3 dozen", "36", True),
    ("١٢", "12", True),
    ("４２", "42", True),
    ("It is 42°", "42", True),
    ("$42^\\circ$", "42", True),
    ("42 m²", "42", True),
    ("42 cm^2", "42", True),
    ("x1 = 42", "42", True),
    ("It is 42!", "42", True),
    ("It is 42?", "42", True),
    ("It is 42;", "42", True),
    ("(42)", "42", True),
    ("[42]", "42", True),
    ("'42'", "42", True),
    ('"42"', "42", True),
    ("42/month", "42", True),
    ("The answer is 42 and not 7.", "42", True),
    ("It is not 7 but 42.", "42", True),
    ("no idea", "42", False),
    ("...", "42", False),
    ("$$", "42", False),
    ("-", "42", False),
    (",.,", "42", False),
    ("5/0", "5", False),
    ("\\boxed{}", "42", False),
    ("####", "42", False),
    ("The answer is 7.", "42", False),
    ("42 is wrong. The answer is 7.", "42", False),
    ("142", "42", False),
    ("42,000", "42", False),
    ("4 2", "42", False),
    ("1,234", "1.234", False),
    ("-42", "42", False),
    ("\\boxed{7} so 42", "42", False),
    ("#### 7\n#### 42", "42", False),
    ("6 * 7 = 42", "42", True),
    ("6*7=42", "42", True),
    ("cm^{2}: 42 cm^{2}", "42", True),
    ("2^3 = 8", "8", True),
    ("The answer is 6 \\cdot 7 = 42", "42", True),
    ("$1.50", "1.5", True),
    ("$.50", "0.5", True),
    ("The price is \\$42.", "42", True),
    ("\\text{Answer: } 42", "42", True),
    ("Total: 42", "42", True),
    ("Total = 42 apples", "42", True),
    ("So, the total number of apples is 42 .", "42", True),
    ("She has 42 apples left, which is 8 fewer than 50.", "42", False),
    ("3,5", "3.5", True),
    ("-1,250", "-1250", True),
    ("\\(-\\frac{3}{2}\\)", "-1.5", True),
    ("$-\\frac{1}{2}$", "-0.5", True),
    ("−½", "-0.5", True),
    ("1/3", "0.333", False),
    ("9" * 5000, "9", False),
    ("9^99", "9", False),
    ("1e99", "1", False),
    ("1e999999999", "1", False),
    ("9" * 500 + " or 42", "42", True),
]


def judged(style: gsm8k.Style, text: str, gold: str) -> dict[str, Any]:
    return dict(gsm8k.judge(style, Problem("a", "", "", gold), text).details)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output["kind"])
def test_outputs_that_a_person_has_judged(output: dict[str, Any]) -> None:
    style, gold = gsm8k.STYLES[output["style"]], gsm8k.gold(output["gold"])
    assert judged(style, output["text"], gold)["numeric"] is output["want"]


@pytest.mark.parametrize(("text", "gold", "right"), READ)
def test_the_number_that_is_stated(text: str, gold: str, right: bool) -> None:
    assert judged(ANY, text, gsm8k.normalised(gold))["numeric"] is right


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output["kind"])
def test_published_scores_are_those_of_the_harness(output: dict[str, Any]) -> None:
    """By the harness's own filters, on the text up to the task's stops, and its exact match."""
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    metrics = pytest.importorskip("lm_eval.api.metrics")
    style, text = gsm8k.STYLES[output["style"]], output["text"]
    for stop in style.stops:
        text = text.partition(stop)[0]
    sentence = style.strict.pattern.startswith("The answer")
    strict = r"The answer is (\-?[0-9\.\,]+)." if sentence else r"#### (\-?[0-9\.\,]+)"
    filters = {
        "strict": extraction.RegexFilter(strict),
        "flexible": extraction.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    }
    target = f"#### {gsm8k.gold(output['gold'])}"  # as the data set writes it
    found = judged(style, output["text"], gsm8k.gold(output["gold"]))
    for name, chosen in filters.items():
        ((said,),) = chosen.apply([[text]], [{}])
        matched = metrics.exact_match_hf_evaluate(
            predictions=[said],
            references=[target],
            regexes_to_ignore=[",", r"\$", "(?s).*#### ", r"\.$"],
            ignore_case=True,
        )
        assert found[name] is bool(matched["exact_match"]), name


HOSTILE = [
    *("1 000" * 5_000, "(" * 20_000 + "1", "\\boxed{" * 2_000 + "1", "\\frac{1}{" * 3_000),
    *("answer " * 5_000, "answer is " * 2_000 + "1", "in the " * 5_000 + "1", "9" * 20_000),
    *("#### " * 5_000 + "1", "1. a\n" * 5_000, "<a" * 5_000, "9^9" * 5_000, "1/" * 9_000),
]


@pytest.mark.few(2)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_read_in_time(text: str) -> None:
    begun = time.process_time()
    stated_number(text)
    assert time.process_time() - begun < 10
