"""From templates to rows: lengths, tokens, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import dllm
from dllm.constraints import Choice, Hole, Regex, Template
from dllm.constraints.template import AUTO
from dllm.infilling.gaps import Gap, Laid
from dllm.infilling.rows import MOST_ROWS, rows_of
from dllm.settings import Settings
from tests.support.models import random_prompts
from tests.support.numbered import numbered

MASK = 126
NAME = "llada_gqa"


def rows(template: Any, prompts: Any = None, **given: Any) -> list[Any]:
    return rows_of(numbered(NAME), prompts, Settings(template=template, **given))


def test_a_row_is_its_template_behind_the_prompt() -> None:
    mask = numbered(NAME).spec.mask_token_id
    (row,) = rows(Template("1", "2 3", Hole(tokens=2), "4", "5", Hole(tokens=3)), [[8, 9]])
    assert row.prompt == [8, 9, 1, 2, 3]  # text before the first hole belongs to it
    assert row.slots == [mask, mask, 4, 5, mask, mask, mask]
    gaps = (Gap(0, 2, None, last=False), Gap(4, 7, None, last=True))
    assert row.laid == Laid(0, 3, gaps)
    assert row.laid.first_end == 4
    assert row.laid.lengths == (2, 3)


def test_an_answer_has_a_row_for_all_lengths_of_its_holes_together() -> None:
    template = Template(Hole(tokens=range(3, 1, -1)), "4", Hole(tokens=(1, 5)), "6")
    found = rows(template, [[1], [2]], n=2)
    assert [row.laid.lengths for row in found[:4]] == [(2, 1), (2, 5), (3, 1), (3, 5)]
    assert [row.laid.answer for row in found] == [n for n in range(4) for _ in range(4)]
    assert [row.prompt for row in found[::4]] == [[1], [1], [2], [2]]
    assert all(row.laid.first_end == len(row.slots) - 1 for row in found)


def test_auto_tries_the_usual_lengths_and_a_last_hole_ends_by_itself() -> None:
    assert [row.laid.lengths for row in rows(Template(Hole(), "4"))] == [(n,) for n in AUTO]
    assert [row.laid.lengths for row in rows(Template("4", Hole(tokens="auto")))] == [(AUTO[-1],)]
    never = rows(Template("4", Hole(tokens="auto")), forbid_eos=True)
    assert [row.laid.lengths for row in never] == [(n,) for n in AUTO]


def tiny_lengths(hole: Hole, *behind: str, **given: Any) -> list[int]:
    """Returns the lengths that a hole is tried with on the embedded model."""
    settings = Settings(template=Template("tom", hole, *behind), **given)
    return [row.laid.lengths[0] for row in rows_of(dllm.load("tiny"), None, settings) if row.laid]


def test_lengths_without_a_text_of_the_constraint_are_left_out() -> None:
    even = Regex("([0-9][0-9]){2,40}")
    assert tiny_lengths(Hole(even, range(1, 8)), ".") == [4, 6]
    assert tiny_lengths(Hole(even), ".") == [4, 6, 8, 10, 12, 16, 24, 32]
    assert tiny_lengths(Hole(Regex("[0-9]{1,3}")), ".") == [1, 2, 3]
    # Where the end token may follow, any length from the shortest text on will do.
    assert tiny_lengths(Hole(even)) == [32]
    assert tiny_lengths(Hole(Regex("[0-9]{40}"))) == [40]
    assert tiny_lengths(Hole(even), forbid_eos=True) == [4, 6, 8, 10, 12, 16, 24, 32]


def test_special_tokens_are_put_before_a_template_without_a_prompt() -> None:
    model = numbered(NAME)

    class Beginning(type(model.tokenizer)):  # type: ignore[misc]
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            ids: list[int] = super().encode(text)
            return [99, *ids] if add_special_tokens else ids

    model = replace(model, tokenizer=Beginning())
    settings = Settings(template=Template.between("1 2", "3", tokens=2))
    (row,) = rows_of(model, None, settings)
    assert row.prompt == [99, 1, 2]
    (row,) = rows_of(model, [[5]], settings)
    assert row.prompt == [5, 1, 2]
    assert row.slots[2:] == [3]


def test_between_is_one_hole_between_two_texts() -> None:
    template = Template.between("def f(x):", "return x", tokens=(4, 8))
    assert template == Template("def f(x):", Hole(tokens=(4, 8)), "return x")
    assert Template.between("a", "b").holes == (Hole(tokens="auto"),)
    digits = Regex("[0-9]")
    assert Template.between("a", "b", 1, digits).holes == (Hole(digits, 1),)


ONE = Template(Hole(tokens=2), "4")


@pytest.mark.parametrize(
    ("template", "given", "message"),
    [
        (
            Template(Hole(), "1", Hole(), "2"),
            {},
            rf"prompt 0: template has 12 x 12 = 144 combinations .* at most {MOST_ROWS} are tr",
        ),
        (Template("1 2", Hole(tokens=10**6)), {}, r"template hole 0: tokens=1000000 is over the"),
        (Template("3 4", Hole(tokens=250)), {}, r"prompt 0 has .* give holes fewer tokens"),
        (Template("1 126", Hole()), {}, r"template part 0 holds the mask token in '1 126': write"),
        ([ONE], {}, r"1 templates were given for 2 prompts"),
        ([], {}, r"0 templates were given for 2 prompts"),
    ],
)
def test_what_is_refused(template: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(template, random_prompts(2), **given)


@pytest.mark.parametrize(
    ("hole", "behind", "message"),
    [
        (Hole(Choice(["tom"]), 4), ["."], r"no text of exactly 4 tokens; it has of 1$"),
        (Hole(Regex("[0-9]{5}"), (2, 3)), ["."], r"exactly 2 or 3 tokens; its texts have more$"),
        (Hole(Regex("[0-9]{80}")), ["."], r"has no text of at most 64 tokens: give Hole"),
    ],
)
def test_a_constraint_that_fits_no_length_is_refused(
    hole: Hole, behind: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"prompt 0: template hole 0: .*{message}"):
        tiny_lengths(hole, *behind)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 64),
        ("min_new_tokens", 3),
        ("constraint", Regex("a")),
        ("fixed", {0: 5}),
        ("infill", True),
        ("stop", ("a",)),
    ],
)
def test_settings_that_say_what_the_template_says_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"template= refuses {name}=.*: "):
        Settings(template=ONE, **{name: value})


def test_a_checkpoints_own_length_gives_way() -> None:
    model = replace(numbered(NAME), defaults={"max_new_tokens": 64, "temperature": 0.5})
    running = dllm.stream(model, [[1]], template=ONE)
    assert running.canvas.layout.num_slots == 3


@pytest.mark.parametrize("name", ["sdar", "e2d2", "nemotron", "bd3lm", "causal"])
def test_models_that_cannot_see_behind_a_hole_are_refused(name: str) -> None:
    model = numbered(name)
    with pytest.raises(ValueError, match=r"has text behind a hole, which .* cannot see: its"):
        dllm.generate(model, [[1, 2]], template=Template("3", Hole(tokens=4), "5"))
    with pytest.raises(ValueError, match=r"holes of several lengths, .* give each hole one length"):
        dllm.generate(model, [[1, 2]], template=Template("3", Hole(tokens=(4, 5))))


@pytest.mark.parametrize("name", ["sdar", "e2d2", "nemotron", "bd3lm"])
def test_they_take_templates_with_nothing_behind_a_hole(name: str) -> None:
    model, prompt = numbered(name), [1, 2, 4]
    out = dllm.generate(model, [prompt], template=Template("3", Hole(tokens=4)))
    plain = dllm.generate(model, [[*prompt, 3]], max_new_tokens=4)
    assert out.sequences == plain.sequences


def test_a_model_whose_masks_stand_last_sees_all_text() -> None:
    model = numbered("wedlm")
    out = dllm.generate(model, [[1, 2]], template=Template("3", Hole(tokens=(2, 4)), "5 6"))
    assert out.sequences[0][-2:] == (5, 6)
    other = dllm.generate(model, [[1, 2]], template=Template("3", Hole(tokens=(2, 4)), "70 71"))
    assert out.tried != other.tried


def test_models_without_a_tokenizer_and_infills_are_refused() -> None:
    model = numbered(NAME)
    with pytest.raises(ValueError, match="has no tokenizer to spell them"):
        dllm.generate(replace(model, tokenizer=None), [[1]], template=ONE)
    with pytest.raises(ValueError, match="prompt 0 is an Infill, and template= says"):
        dllm.generate(model, dllm.Infill("1", 2, "3"), template=ONE)
    with pytest.raises(TypeError, match="no prompts were given"):
        dllm.generate(model)
