"""Our decoding behind transformers' `generate`: its tokens, its streamers, what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.generation.logits_process import LogitsProcessorList, TopPLogitsWarper
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

import dllm
from dllm.integrations.transformers import (
    DiffusionOutput,
    diffusion_generate,
    generate,
    save_custom_generate,
)
from tests.support.oracles import SPECIAL, oracle
from tests.support.streamers import Kept
from tests.support.vocabularies import byte_level

IDS_OF: dict[str, Any] = {**SPECIAL}
FAMILIES = ("A2DQwen3LMHeadModel", "A2DLlamaLMHeadModel", "DreamModel", "SDARMoeForCausalLM")
PAD = SPECIAL["pad_token_id"]
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10]]
IDS = torch.tensor([[PAD, PAD, *PROMPTS[0]], PROMPTS[1]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
ONE = IDS[1:]
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "block_length": 4, "scheduler": "threshold:0.3"}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return oracle(FAMILIES[0])


def ask(model: Any, ids: Tensor = ONE, **options: Any) -> Any:
    named = {"custom_generate": diffusion_generate, **SPECIAL, **OPTIONS, **options}
    return model.generate(ids, **named)


def alone(model: Any, prompts: Any = (PROMPTS[1],), **options: Any) -> list[list[int]]:
    """Returns the answers of the front door on the wrapped model, up to their end tokens."""
    shift = options.pop("logit_shift", 0)
    tokenizer = options.pop("tokenizer", None)
    wrapped = dllm.wrap(model, **IDS_OF, logit_shift=shift, tokenizer=tokenizer)
    out = dllm.generate(wrapped, list(prompts), **{**OPTIONS, **options})
    rows = zip(out.sequences, out.metrics.rows, strict=True)
    return [ended(list(tokens[row.prompt_tokens :])) for tokens, row in rows]


def ended(answer: list[int]) -> list[int]:
    end = SPECIAL["eos_token_id"]
    return answer[: answer.index(end) + 1] if end in answer else answer


def answers(sequences: Tensor, width: int = 5) -> list[list[int]]:
    return [ended(row[width:].tolist()) for row in sequences]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shift", [0, 1])
def test_tokens_are_those_of_the_front_door(family: str, shift: int) -> None:
    model = oracle(family)
    given = ask(model, IDS, attention_mask=MASK, logit_shift=shift)
    assert torch.equal(given[:, :5], IDS)
    assert answers(given) == alone(model, PROMPTS, logit_shift=shift)


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "fixed_quota", "steps": 6},
        {"scheduler": {"name": "remdm"}, "seed": 4},
        {"scheduler": "entropy_bound", "verifier": None, "confidence": "tempered"},
        {"constraint": None, "at_eos": "ignore", "diffusion_cache": "none"},
    ],
    ids=["steps", "revising", "confidence", "at_eos"],
)
def test_options_have_their_meaning(model: PreTrainedModel, options: dict[str, Any]) -> None:
    given = ask(model, **options)
    options = {name.removeprefix("diffusion_"): value for name, value in options.items()}
    (expected,) = alone(model, **options)
    assert given[0, 5:].tolist()[: len(expected)] == expected


@pytest.mark.parametrize(
    ("asked", "ours"),
    [
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.9}, {"top_k": 5, "top_p": 0.9}),
        ({"temperature": 1.0, "top_k": 0}, {"temperature": 1.0}),
        ({"temperature": 0.7, "top_k": 0, "repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        (
            {"temperature": 0.7, "top_k": 0, "suppress_tokens": [32, 47]},
            {"forbidden_token_ids": [32, 47]},
        ),
        ({"temperature": 0.7, "top_k": 0, "min_new_tokens": 8}, {"min_new_tokens": 8}),
    ],
    ids=["filters", "plain", "penalty", "suppressed", "least"],
)
def test_processors_are_settings(
    model: PreTrainedModel, asked: dict[str, Any], ours: dict[str, Any]
) -> None:
    given = ask(model, do_sample=True, seed=3, **asked)
    assert answers(given) == alone(model, **{"temperature": 0.7, "seed": 3, **ours})


def test_without_sampling_it_is_greedy(model: PreTrainedModel) -> None:
    given = ask(model, do_sample=False)
    assert answers(given) == alone(model, temperature=0)
    assert torch.equal(given, ask(model, seed=9))


def test_several_answers_to_each_prompt(model: PreTrainedModel) -> None:
    sampled = {"do_sample": True, "temperature": 0.9, "top_k": 0, "seed": 5}
    given = ask(model, IDS, attention_mask=MASK, num_return_sequences=3, **sampled)
    assert answers(given) == alone(model, PROMPTS, n=3, temperature=0.9, seed=5)
    assert len({tuple(row) for row in answers(given)}) > 2


def test_a_dictionary_has_figures(model: PreTrainedModel) -> None:
    given = ask(model, return_dict_in_generate=True)
    assert isinstance(given, DiffusionOutput)
    assert given.sequences is not None
    assert torch.equal(given.sequences, ask(model))
    assert given.generation is not None
    assert given.tokens_per_forward is not None
    (row,) = given.generation.metrics.rows
    assert given.tokens_per_forward.tolist() == pytest.approx([row.tokens_per_forward])


def test_rows_end_at_their_end_token_and_are_padded(model: PreTrainedModel) -> None:
    other, plain = (row[5:].tolist() for row in ask(model, IDS, attention_mask=MASK))
    end = next(token for token in plain if token not in other)
    given = ask(model, IDS, attention_mask=MASK, eos_token_id=[end, 1], pad_token_id=2)
    rows = [row[5:].tolist() for row in given]
    assert {*rows[1][rows[1].index(end) + 1 :]} == {2}
    assert any(row[-1] != 2 for row in rows), "no more padding than the longest answer needs"


def test_defaults_lie_in_the_generation_configuration(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    options = {"scheduler": {"name": "threshold", "threshold": 0.3}, "block_length": 4}
    config = GenerationConfig(**SPECIAL, **options, max_new_tokens=12)
    config.save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    module: Any = model
    given = module.generate(ONE, custom_generate=diffusion_generate, generation_config=read)
    assert torch.equal(given, ask(model))
    one = ask(model, generation_config=read, scheduler="fixed_quota", steps=12)
    assert answers(one) == alone(model, scheduler="fixed_quota", steps=12)


# Streamers.


@pytest.mark.parametrize("scheduler", ["threshold:0.3", "remdm"])
def test_a_streamer_is_told_in_reading_order(model: PreTrainedModel, scheduler: str) -> None:
    kept = Kept()
    given = ask(model, scheduler=scheduler, diffusion_streamer=kept, seed=1)
    assert kept.puts[0] == ONE.tolist()
    assert [token for part in kept.puts[1:] for token in part] == answers(given)[0]
    assert kept.ended == 1
    assert (len(kept.puts) > 2) == (scheduler != "remdm"), "what may be taken back is not told"
    assert kept.drafts
    for told, draft in kept.drafts:
        assert len(draft) == 1
        assert told + len(draft[0]) == OPTIONS["max_new_tokens"], "all that is not told yet"
    assert SPECIAL["mask_token_id"] not in kept.drafts[-1][1][0][:1]


def test_a_text_streamer(capsys: pytest.CaptureFixture[str]) -> None:
    module, tokenizer = llama_of_bytes()
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    options = special_of(tokenizer)
    given = ask(module, diffusion_streamer=streamer, **options)
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(given[0, 5:])


@pytest.mark.skipif(
    not hasattr(transformers, "TextDiffusionStreamer"), reason="this transformers has none"
)
def test_the_streamer_of_diffusion_models(capsys: pytest.CaptureFixture[str]) -> None:
    module, tokenizer = llama_of_bytes()
    streamer = transformers.TextDiffusionStreamer(tokenizer, skip_prompt=True)
    options = special_of(tokenizer)
    given = ask(module, diffusion_streamer=streamer, **options)
    said = capsys.readouterr().out
    assert "\033[33m" in said, "a draft"
    final = re.sub(r"\0337\033\[33m.*?\033\[0m|\0338\033\[J", "", said, flags=re.DOTALL)
    assert tokenizer.decode(given[0, 5:]) == final.rstrip("\n")


def llama_of_bytes() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a model of transformers with a tokenizer of letters."""
    tokenizer = byte_level([bytes([letter]) for letter in b"abcdefgh"])
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=1.0,
    )
    return transformers.LlamaForCausalLM(config).eval(), tokenizer


def special_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    names = ("mask_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def test_stop_strings() -> None:
    module, tokenizer = llama_of_bytes()
    options = special_of(tokenizer)
    plain = ask(module, **options)[0, 5:].tolist()
    words = str(tokenizer.decode(plain[2:4])).strip()
    kept = Kept()
    given = ask(
        module, stop=[words], diffusion_tokenizer=tokenizer, diffusion_streamer=kept, **options
    )[0, 5:].tolist()
    assert given == plain[: len(given)]
    assert words in tokenizer.decode(given)
    assert words not in tokenizer.decode(given[:-1])
    assert [token for part in kept.puts[1:] for token in part] == given
    criterion = StoppingCriteriaList([StopStringCriteria(tokenizer, [words])])
    same = ask(module, stopping_criteria=criterion, diffusion_tokenizer=tokenizer, **options)
    assert same[0, 5:].tolist() == given
    whole = generate(
        module, ONE, **{**SPECIAL, **OPTIONS, **options}, tokenizer=tokenizer, stop_strings=words
    )
    assert torch.equal(whole, same)
    with pytest.raises(ValueError, match="give diffusion_tokenizer=tokenizer"):
        ask(module, stopping_criteria=criterion, **options)


# All arguments, and the folder.


def test_the_folder_decodes_offline(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    path = save_custom_generate(tmp_path / "own")
    assert path == tmp_path / "own" / "custom_generate" / "generate.py"
    kept = Kept()
    options: dict[str, Any] = {"custom_generate": str(tmp_path / "own"), "streamer": kept}
    given = ask(model, trust_remote_code=True, **options)
    assert torch.equal(given, ask(model))
    assert [token for part in kept.puts[1:] for token in part] == answers(given)[0]
    model.generation_config = GenerationConfig(**SPECIAL, **OPTIONS)
    model.save_pretrained(tmp_path / "own")
    loaded = type(model).from_pretrained(tmp_path / "own", trust_remote_code=True).eval()
    assert torch.equal(loaded.generate(inputs=ONE), given)


# What is refused.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, r"num_beams=2 .*there are no beams"),
        ({"prompt_lookup_num_tokens": 3}, r"prompt_lookup_num_tokens=3 .*'ssd'"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True"),
        ({"max_time": 5.0}, "stopping_criteria holds MaxTimeCriteria"),
        ({"do_sample": True, "min_p": 0.1}, "logits_processor holds MinPLogitsWarper"),
        ({"no_repeat_ngram_size": 2}, "logits_processor holds NoRepeatNGramLogitsProcessor"),
        ({"guidance_scale": 2.0}, "logits_processor holds UnbatchedClassifierFreeGuidance"),
        ({"inputs_embeds": torch.zeros(1, 5, 32)}, "inputs_embeds is not read"),
        ({"diffusion_cache": "dual"}, "cache 'dual' needs a model with a K/V store"),
        ({"scheduler": "nobody"}, "unknown scheduler 'nobody'"),
        ({"nobody": 3}, "nobody"),
        ({"stop": ["x"]}, r"stop_strings=\['x'\].*diffusion_tokenizer"),
        ({"mask_token_id": None}, "cannot tell the mask_token_id"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done(model: PreTrainedModel, options: dict[str, Any], said: str) -> None:
    model.generation_config = GenerationConfig()
    with pytest.raises(ValueError, match=said):
        ask(model, **options)


def test_processors_that_say_more_than_a_setting(model: PreTrainedModel) -> None:
    for processors, said in (
        ([TopPLogitsWarper(0.9), TopPLogitsWarper(0.8)], "TopPLogitsWarper twice"),
        ([TopPLogitsWarper(0.9, min_tokens_to_keep=3)], "min_tokens_to_keep=3"),
        ([lambda tokens, scores: scores], "logits_processor holds function"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(model, logits_processor=LogitsProcessorList(processors))


def test_a_store_that_holds_tokens(model: PreTrainedModel) -> None:
    kept = transformers.DynamicCache()
    ask(model, past_key_values=kept)
    model(ONE, past_key_values=kept)
    with pytest.raises(ValueError, match=r"holds 5 tokens: memory=dllm\.PromptMemory"):
        ask(model, torch.cat([ONE, ONE], 1), past_key_values=kept)


def test_a_streamer_of_several_rows(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="with 2 rows"):
        ask(model, IDS, attention_mask=MASK, diffusion_streamer=Kept())
    wanting = Kept()
    wanting._takes_logits = True
    with pytest.raises(ValueError, match="Kept takes the logits of drafts"):
        ask(model, diffusion_streamer=wanting)


@pytest.mark.parametrize("name", ["assistant_model", "negative_prompt_ids"])
def test_what_generate_would_keep_to_itself(model: PreTrainedModel, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} was given"):
        generate(model, ONE, **{name: model, **SPECIAL, **OPTIONS})
    with pytest.raises(ValueError, match="synced_gpus=True"):
        generate(model, ONE, synced_gpus=True, **SPECIAL, **OPTIONS)


def test_a_model_that_is_trained(model: PreTrainedModel) -> None:
    model.train()
    try:
        with pytest.raises(ValueError, match=r"call module\.eval\(\)"):
            ask(model)
    finally:
        model.eval()
