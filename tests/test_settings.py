"""Settings: any length, published argument lines, and methods at the ends of what they take."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

import dllm
from dllm.aliases import ALIASES, SCHEDULER_OPTIONS, WITHOUT_EFFECT, Given
from dllm.constraints import Choice, ConstraintSpan, Regex
from dllm.options import Range
from dllm.schedulers import Scheduler
from dllm.settings import HINTS, PARTS, Settings
from dllm.state.noise import CounterNoise
from tests.support.models import golden_model, random_prompts

SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}


@pytest.fixture
def model() -> dllm.HostedModel:
    return golden_model("llada_gqa")


@pytest.mark.few(2)
@pytest.mark.parametrize("block", [1, 2, 8])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_variants_may_be_more_than_columns(block: int, cache: str) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 16,
        "block_length": block,
        "cache": cache,
        "at_eos": "ignore",
    }
    many = dllm.generate(*asked(), scheduler="lopa:0.999,branches=10,blocks=1", **options)
    assert [row.raw_tokens for row in many.metrics.rows] == [16, 16]
    if block == 1:  # nothing is left to look ahead to
        assert (
            many.sequences == dllm.generate(*asked(), scheduler="fixed_quota", **options).sequences
        )


def test_deferred_tokens_alone_may_pass_the_filters() -> None:
    options: dict[str, Any] = {"scheduler": "dream", "temperature": 0.4, "top_p": 0.5, "seed": 0}
    out = dllm.generate(*asked(), max_new_tokens=64, defer_eos=True, **options)
    assert all("#### " in str(text) for text in out.texts or ())


@pytest.mark.few(1)
@pytest.mark.parametrize("at_eos", ["truncate", "stop", "skip", "block", "ignore"])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_a_planned_order_goes_on_where_a_row_was_cut(at_eos: str, guidance_scale: float) -> None:
    model, prompts = asked()
    options: dict[str, Any] = {
        "scheduler": "fixed_quota:order=planned",
        "cache": "dkv_greedy:window=0,refresh=9",
        "max_new_tokens": 48,
        "block_length": 16,
        "at_eos": at_eos,
        "guidance_scale": guidance_scale,
    }
    together = dllm.generate(model, prompts, seed=[5, 6], **options)
    alone = [dllm.generate(model, prompts[i], seed=[5 + i], **options) for i in range(2)]
    assert together.sequences == tuple(one.sequences[0] for one in alone)
    assert [r.forwards for r in together.metrics.rows] == [
        one.metrics.rows[0].forwards for one in alone
    ]


def asked() -> tuple[dllm.HostedModel, list[str]]:
    """Returns the embedded model and two questions that it answers."""
    one = "tom has 53 pens. tom loses 3. how many pens does tom have?"
    two = "ann has 5 eggs. ann buys 7 more. how many eggs does ann have?"
    return dllm.load("tiny"), [one, two]


LINES: list[tuple[str, dict[str, Any], str, str]] = [  # as published, with smaller lengths
    (
        "LLaDA generate.py",
        {"steps": 64, "gen_length": 64, "block_length": 32, "temperature": 0.0, "cfg_scale": 0.0}
        | {"remasking": "low_confidence", "logits_eos_inf": False}
        | {"confidence_eos_eot_inf": False},
        "fixed_quota:64",
        "none",
    ),
    (
        "LLaDA chat.py",
        {"steps": 32, "gen_length": 64, "block_length": 32},
        "fixed_quota:32",
        "none",
    ),
    (
        "Fast-dLLM llada generate.py",
        {"steps": 64, "gen_length": 64, "block_length": 32, "temperature": 0.0}
        | {"remasking": "low_confidence", "threshold": None, "factor": None},
        "fixed_quota:64",
        "none",
    ),
    (
        "Fast-dLLM llada eval_llada.py, parallel with dual cache",
        {"gen_length": 64, "steps": 2, "block_length": 32, "use_cache": True, "dual_cache": True}
        | {"threshold": 0.9, "show_speed": True},
        "threshold:0.9",
        "dual",
    ),
    (
        "Fast-dLLM llada eval_llada.py, prefix cache",
        {"gen_length": 64, "steps": 64, "block_length": 32, "use_cache": True},
        "fixed_quota:64",
        "prefix",
    ),
    (
        "Fast-dLLM llada eval_llada.py, factor",
        {"gen_length": 64, "steps": 2, "block_length": 32, "use_cache": True, "factor": 1.0},
        "factor:1.0",
        "prefix",
    ),
    (
        "Fast-dLLM dream eval.py",
        {"max_new_tokens": 64, "diffusion_steps": 64, "temperature": 0.0, "top_p": 0.9}
        | {"alg": "confidence_threshold", "threshold": 0.9, "alg_temp": 0.0, "block_length": 32}
        | {"use_cache": True, "dual_cache": True},
        "quota_threshold:0.9,steps=64",
        "dual",
    ),
    (
        "Dream diffusion_generate",
        {"max_new_tokens": 64, "output_history": True, "return_dict_in_generate": True}
        | {"steps": 64, "temperature": 0.2, "top_p": 0.95, "alg": "entropy", "alg_temp": 0.0},
        "dream:entropy,steps=64,order_temperature=0.0",
        "none",
    ),
    (
        "dInfer benchmark, threshold",
        {"gen_len": 64, "block_length": 32, "parallel_decoding": "threshold", "threshold": 0.9}
        | {"cache": "dual", "prefix_look": 16, "after_look": 16},
        "threshold:0.9",
        "dual:vicinity_before=16,vicinity_after=16",
    ),
    (
        "dInfer benchmark, credit",
        {"gen_len": 64, "block_length": 32, "parallel_decoding": "threshold", "threshold": 0.8}
        | {"cache": "dual", "use_credit": True},
        "credit:0.8",
        "dual",
    ),
    (
        "dInfer benchmark, hierarchy",
        {"gen_len": 64, "block_length": 32, "parallel_decoding": "hierarchy", "threshold": 0.92}
        | {"low_threshold": 0.62, "cache": "prefix"},
        "hierarchical:0.92,low_threshold=0.62",
        "prefix",
    ),
    (
        "d2Cache",
        {"gen_length": 64, "block_length": 32, "num_transfer_tokens": 2, "cache": "d2cache"},
        "fixed_quota:tokens_per_step=2",
        "d2cache",
    ),
    (
        "SDAR generate.py, dynamic",
        {"gen_length": 64, "block_length": 32, "temperature": 0.0, "top_k": 0x1000, "top_p": 1.0}
        | {"remasking_strategy": "low_confidence_dynamic", "confidence_threshold": 0.85},
        "quota_threshold:0.85,quota=least",
        "none",
    ),
    (
        "SDAR generate.py, static",
        {"gen_length": 64, "block_length": 32, "steps": 64, "temperature": 0.0}
        | {"remasking_strategy": "low_confidence_static", "confidence_threshold": 0.85},
        "fixed_quota:64,schedule=block",
        "none",
    ),
    (
        "SDAR generate.py, sequential",
        {"gen_length": 64, "block_length": 32, "remasking_strategy": "sequential"},
        "fixed_quota:schedule=block,order=sequential",
        "none",
    ),
]


@pytest.mark.parametrize("line", LINES, ids=[line[0] for line in LINES])
def test_published_argument_lines_mean_what_they_mean_there(
    line: tuple[str, dict[str, Any], str, str],
) -> None:
    model, prompts = asked()
    _, given, scheduler, cache = line
    running = dllm.stream(model, prompts[:1], seed=0, **given)
    assert running.scheduler == dllm.schedulers.registry.create(scheduler)
    assert running.cache == dllm.cache.registry.create(cache)
    for _ in running:
        pass
    assert "#### " in str(running.output.texts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 0.9, "scheduler": "factor"}, "threshold=0.9 sets scheduler a second time"),
        ({"alg": "entropy", "threshold": 0.9}, "threshold=0.9 sets scheduler a second time"),
        ({"remasking": "random", "threshold": 0.9}, "remasking='random' sets scheduler a second"),
        ({"use_cache": True, "cache": "dual"}, "use_cache=True sets cache a second time"),
    ],
)
def test_words_that_contradict_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dllm.stream(*asked(), **given)


@pytest.mark.few(2)
@pytest.mark.parametrize(("slots", "block"), [(10, 4), (7, 16), (1, 8), (13, 5), (33, None)])
@pytest.mark.parametrize(
    "scheduler", ["threshold:0.6", "fixed_quota", "lopa:0.6", "quota_threshold"]
)
@pytest.mark.parametrize("cache", ["none", "dual", "prefix"])
def test_any_length_goes_with_any_block_length(
    model: dllm.HostedModel, slots: int, block: int | None, scheduler: str, cache: str
) -> None:
    prompts = random_prompts(3)
    options: dict[str, Any] = {"max_new_tokens": slots, "block_length": block, "cache": cache}
    out = dllm.generate(model, prompts, scheduler=scheduler, at_eos="ignore", **options)
    assert [row.raw_tokens for row in out.metrics.rows] == [slots] * 3
    for prompt, sequence in zip(prompts, out.sequences, strict=True):
        alone = dllm.generate(model, prompt, scheduler=scheduler, at_eos="ignore", **options)
        assert alone.sequences[0] == sequence
        assert len(sequence) == len(prompt) + slots


def test_a_constant_number_a_step(model: dllm.HostedModel) -> None:
    out = dllm.generate(
        model, [[1, 2, 3]], scheduler="fixed_quota:tokens_per_step=3", at_eos="ignore", **SLOTS
    )
    steps = [len(commits) for commits in out.trace.commits(0)]
    assert steps == [3, 3, 2, 3, 3, 2]


def test_editors_see_every_setting() -> None:
    given = set(Given.__annotations__) - {"input_ids", "attention_mask"}
    assert given == {f.name for f in fields(dllm.Settings)} | {*ALIASES, *SCHEDULER_OPTIONS} | {
        *WITHOUT_EFFECT
    }


# What people type who come from transformers.


def test_a_hint_is_about_what_transformers_takes_and_we_do_not() -> None:
    theirs = {
        *GenerationConfig().to_dict(),
        *inspect.signature(GenerationMixin.generate).parameters,
    }
    theirs |= {"tokenizer", "past_key_values"}  # go through the keywords of their generate
    theirs |= {"denoising_steps"}  # of SDAR, of each block
    assert set(HINTS) <= theirs
    assert not set(HINTS) & set(Given.__annotations__)
    ours = {*Given.__annotations__, "progress", "callback", "memory", "tokenizer"}
    for sentence in HINTS.values():
        assert set(re.findall(r"(\w+)=", sentence)) <= ours
        assert set(re.findall(r"\b([a-z]+_[a-z_]+)\b", sentence)) <= ours
        for name in re.findall(r"'(\w+)'", sentence):
            assert any(name in registry.names() for registry in PARTS.values())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("do_sample", True, "temperature=0.7 samples"),
        ("max_length", 64, "max_new_tokens=... counts without the prompt"),
        ("num_beams", 4, "there are no beams"),
        ("pad_token_id", 0, "none is padded"),
        ("stopping_criteria", [], "leave the loop of dllm.stream"),
        ("streamer", print, "callback=..."),
    ],
)
def test_names_of_transformers_are_answered(name: str, value: Any, says: str) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=f"^unknown setting {name}=") as caught:
        dllm.generate(*asked(), **given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# As JSON: every field there and back.

TYPES = typing.get_type_hints(Settings, include_extras=True)
FIELDS = [field.name for field in fields(Settings)]
# Of fields whose types do not say what may be written.
VALUES: dict[str, list[Any]] = {
    "scheduler": ["threshold:0.8", "slowfast@code", dllm.schedulers.registry.create("wino:0.7")],
    "cache": ["dual", dllm.cache.registry.create("dkv:refresh=3")],
    "verifier": ["ssd:draft_length=3", dllm.verifiers.registry.create("freedave:2")],
    "fixed": [{3: 5, 0: "text"}],
    "min_new_tokens": [3],
    "constraint": [Regex("[0-9]+"), ConstraintSpan(Choice(["a"]), 0, 3), [Regex("a"), None]],
    "statistics_dtype": [torch.float64, torch.float32],
}
CANNOT: dict[str, Any] = {
    "generator": torch.Generator(),
    "noise": CounterNoise(torch.tensor([1])),
    "logits_processors": (len,),
}


def samples(hint: Any) -> list[Any]:
    """Returns values that an annotation allows, other than none."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        (allowed,) = (extra for extra in args[1:] if isinstance(extra, Range))
        inside = [allowed.least, allowed.most, (allowed.least + allowed.most) / 2 + 0.1]
        return [args[0](value) for value in inside if args[0](value) in allowed]
    if origin in (typing.Union, types.UnionType):
        return [value for arg in args for value in samples(arg)]
    if origin is Literal:
        return list(args)
    if origin is tuple:
        return [tuple(samples(args[0])), ()]
    if origin is list:
        return [samples(args[0])]
    plain: dict[Any, list[Any]] = {bool: [True, False], str: ["one", 'two "\n⊕']}
    return plain.get(hint, [])


def values(name: str) -> list[Any]:
    return VALUES[name] if name in VALUES else samples(TYPES[name])


def made_of(name: str, value: Any) -> Settings:
    given: dict[str, Any] = {name: value}
    return Settings(**given)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_comes_back_as_it_was_or_is_refused_by_name(name: str) -> None:
    found = values(name) if name not in CANNOT else []
    for value in found:
        settings = made_of(name, value)
        text = settings.to_json()
        again = Settings.from_json(text)
        assert again == settings
        assert type(getattr(again, name)) is type(getattr(settings, name))
        assert again.to_json() == text
        assert set(json.loads(text)) == set(FIELDS)
    if not found:
        assert name in CANNOT or "Callable" in str(TYPES[name]), f"{name}: say what it may be"
    if name in CANNOT:
        with pytest.raises(ValueError, match=f"^{name}=.* cannot be written"):
            made_of(name, CANNOT[name]).to_json()


def test_what_is_left_out_has_its_default() -> None:
    assert Settings.from_json("{}") == Settings() == Settings.from_json(Settings().to_json())
    assert Settings.from_json({"max_new_tokens": 7}) == Settings(max_new_tokens=7)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_written_with_its_options(part: str) -> None:
    registry = PARTS[part]
    for name in registry.names():
        made = registry.create(name)
        text = made_of(part, made).to_json()
        assert json.loads(text)[part] == json.loads(json.dumps(made.summary()))
        assert getattr(Settings.from_json(text), part) == made
        mapping = made_of(part, {"name": name})  # one that is given becomes the part
        assert getattr(Settings.from_json(mapping.to_json()), part) == made


OWN = """
from dataclasses import dataclass
from dllm.schedulers import Decision, Scheduler

@dataclass(frozen=True)
class Mine(Scheduler):
    many: bool = True

    def select(self, candidates, view):
        return Decision(view.masked)
"""


def test_a_class_of_a_file_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    made = dllm.schedulers.registry.create(f"{file}:Mine,many=false")
    text = Settings(scheduler=made).to_json()
    assert json.loads(text)["scheduler"] == {"name": f"{file}:Mine", "many": False}
    assert Settings.from_json(text).scheduler == made


def test_a_class_that_has_no_name_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(Scheduler):
        def select(self, candidates: Any, view: Any) -> Any:
            return None

    with pytest.raises(ValueError, match=r"^scheduler=.* does not name its class; keep it in a"):
        Settings(scheduler=Mine()).to_json()


def test_names_of_the_literature_are_read_as_in_a_call() -> None:
    written = {"gen_length": 64, "block_size": 16, "steps": 8, "cfg_scale": 1.5}
    found = Settings.from_json(json.dumps(written))
    scheduler = dllm.schedulers.registry.create("fixed_quota:8")
    expected = Settings(scheduler=scheduler, max_new_tokens=64, block_length=16, guidance_scale=1.5)
    assert found == expected


def test_settings_that_were_read_decode_as_those_that_were_written() -> None:
    model, prompt = dllm.load("tiny"), "sam has 9 cards. sam finds 4. how many cards does sam have?"
    settings = Settings(scheduler="klass", cache="dual", max_new_tokens=32, block_length=8)
    out = dllm.generate(model, prompt, Settings.from_json(settings.to_json()))
    assert out.sequences == dllm.generate(model, prompt, settings).sequences


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ('{"cache": "dual", "cache": "none"}', ValueError, "the key 'cache' stands twice"),
        (
            '{"scheduler": {"name": "wino", "name": "ete"}}',
            ValueError,
            "'name' stands twice",
        ),
        ('{"gen_length": 3, "max_new_tokens": 3}', TypeError, "max_new_tokens a second time"),
        ('{"max_new_token": 3}', TypeError, "unknown setting .* did you mean 'max_new_tokens'"),
        ({3: 4}, TypeError, "unknown setting 3=4"),
        ("[1, 2]", ValueError, r"settings=\[1, 2\] must be an object with names"),
        ("{", ValueError, "settings is not valid JSON: .* line 1"),
        ('{"temperature": NaN}', ValueError, "NaN is no JSON number"),
        ('{"cache": "dueal"}', ValueError, "unknown cache 'dueal': did you mean 'dual'"),
        ('{"generator": 3}', ValueError, "generator=3 must be"),
    ],
)
def test_what_is_no_setting(
    given: str | Mapping[Any, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        Settings.from_json(given)
