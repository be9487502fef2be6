"""The lm-evaluation-harness with this project's model: its own tasks, settings, costs, errors."""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import dllm
from dllm.constraints import Choice
from dllm.eval.lm_eval.arguments import ArgumentError, Wishes, read_arguments, seed_of, stops
from dllm.eval.lm_eval.likelihood import Scorer
from dllm.eval.lm_eval.requests import Asked, Encoder
from dllm.eval.run.describe import Setup
from dllm.eval.tasks import TASKS, arithmetic
from dllm.settings import Settings, resolve
from tests.support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: the extra lm-eval")

from lm_eval.api.instance import Instance  # noqa: E402 only where it is installed
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.registry import Registry  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from dllm.eval import harness  # noqa: E402
from dllm.eval.harness import DiffusionLM  # noqa: E402
from dllm.eval.lm_eval import adapter  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NUM = 7
TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}, cache_dir: {cache}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
SUMS = """
task: dllm_sums
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["; ####", "never"], do_sample: false, max_gen_toks: 64}
filter_list:
  - name: number
    filter: [{function: regex, regex_pattern: "=(-?[0-9]+)"}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
task: dllm_choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
LEAD = 'doc_to_text: "{{question}}\\n{{lead}}"'
PROBLEMS = list(islice(arithmetic.problems("test", 0, 100), NUM))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks on a local file, as a user writes them."""
    folder = tmp_path_factory.mktemp("tasks")
    with (folder / "sums.jsonl").open("w", encoding="utf-8") as file:
        for number, problem in enumerate(PROBLEMS):
            answer, right = problem.answer, number % 3
            choices = [str(int(answer) + 1), "7", str(int(answer) + 10)]
            choices[right] = answer
            record = {"question": problem.prompt, "answer": answer, "choices": choices}
            lead = problem.response.partition(answer)[0]
            file.write(json.dumps({**record, "right": right, "lead": lead}) + "\n")
    head = TASK.format(data=folder / "sums.jsonl", cache=folder / "cache")
    (folder / "sums.yaml").write_text(head + SUMS, encoding="utf-8")
    lines = [LEAD if line.startswith("doc_to_text") else line for line in head.splitlines()]
    (folder / "choice.yaml").write_text("\n".join(lines) + CHOICE, encoding="utf-8")
    return folder


def evaluate(folder: Path, *tasks: str, **options: Any) -> Any:
    arguments = {"pretrained": "tiny", **options.pop("model_args", {})}
    return lm_eval.simple_evaluate(
        model="dllm",
        model_args=arguments,
        tasks=list(tasks),
        batch_size=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def request(kind: Any, *arguments: Any, number: int = 0) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", number, 1))


def asks(prompts: list[str], **arguments: Any) -> list[Instance]:
    return [request("generate_until", p, {**arguments}, number=i) for i, p in enumerate(prompts)]


PROMPTS = [problem.prompt for problem in PROBLEMS]
GREEDY = {"until": [], "do_sample": False}


@pytest.fixture(scope="module")
def model() -> DiffusionLM:
    return DiffusionLM(pretrained="tiny", batch_size=4, scheduler="threshold:0.8")


# The harness's own tasks.


def test_a_generation_task_scores_what_generate_answers(
    folder: Path, tmp_path: Path, tiny: dllm.HostedModel
) -> None:
    stats = tmp_path / "costs" / "stats.jsonl"
    options = {"scheduler": "threshold:0.8", "cache": "dual", "stats": str(stats)}
    found = evaluate(folder, "dllm_sums", model_args=options)
    out = dllm.generate(tiny, PROMPTS, scheduler="threshold:0.8", cache="dual", max_new_tokens=64)
    assert out.texts is not None
    cut = [text.partition("; ####")[0] for text in out.texts]
    right = [
        (re.findall(r"=(-?[0-9]+)", text) or [""])[0] == problem.answer
        for text, problem in zip(cut, PROBLEMS, strict=True)
    ]
    assert sum(right) > 0
    assert found["results"]["dllm_sums"]["exact_match,number"] == sum(right) / NUM
    assert [s["resps"][0][0] for s in found["samples"]["dllm_sums"]] == cut
    *each, totals = lines_of(stats)
    rows = {line["doc_id"]: line for line in each}
    assert [rows[i]["forwards"] for i in range(NUM)] == [row.forwards for row in out.metrics.rows]
    assert all(line["kind"] == "generate_until" and line["stopped"] for line in each)
    assert totals["kind"] == "totals"
    assert totals["requests"] == NUM
    assert totals["valid_tokens"] == out.metrics.valid_tokens
    assert totals["tokens_per_forward"] == pytest.approx(out.metrics.tokens_per_forward)
    recorded = found["config"]["dllm"]
    assert recorded["totals"] == {k: v for k, v in totals.items() if k not in ("run", "kind")}
    assert recorded["run"] == totals["run"]
    assert recorded["scheduler"] == {"name": "threshold", "threshold": 0.8}
    assert recorded["cache"]["name"] == "dual"


def test_a_choice_task_scores_the_answers(folder: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    found = evaluate(folder, "dllm_choice", model_args={"stats": str(stats), "mc_num": 8})
    assert found["results"]["dllm_choice"]["acc,none"] == 1
    lines = lines_of(stats)
    assert len(lines) == 3 * NUM
    assert all(line["kind"] == "loglikelihood" for line in lines)
    assert {line["target_tokens"] for line in lines} <= {1, 2, 3}
    assert all(
        line["exact"] and line["num_draws"] == 2 ** line["target_tokens"] - 1 for line in lines
    )
    assert any(line["is_greedy"] for line in lines)


RULE = """
from dataclasses import dataclass
from dllm.schedulers.threshold import Threshold

@dataclass(frozen=True)
class Own(Threshold):
    def decide(self, candidates, view):
        return super().decide(candidates, view){more}
"""


def described(model: dllm.HostedModel, **given: Any) -> dict[str, Any]:
    arguments = read_arguments({"pretrained": "tiny", **given})
    return adapter.describe(model, Wishes(model, arguments).base, arguments)


def test_a_run_is_named_by_what_names_one_of_dllms_own_tasks(
    tiny: dllm.HostedModel, tmp_path: Path
) -> None:
    given = {"scheduler": "threshold:0.8", "cache": "dual", "verifier": "ssd"}
    here, task = described(tiny, **given), TASKS["arithmetic"]
    there = Setup(tiny, task, resolve(tiny.defaults, None, given)).describe()
    assert set(here["sources"]) == {"scheduler", "cache", "verifier"}
    assert here["sources"].items() < there["sources"].items()
    for name in set(there) - {"task", "task_options", "sources"}:
        assert here[name] == there[name], name
    file, names = tmp_path / "own.py", []
    for more in ("", "  # edited"):
        file.write_text(RULE.format(more=more))
        names.append(described(tiny, scheduler=f"{file}:Own")["run"])
    other = replace(tiny, name="tiny", spec=replace(tiny.spec, eos_token_ids=(7,)))
    names += [described(model, **given)["run"] for model in (tiny, other)]
    assert len(set(names)) == 4
    assert described(tiny, **given)["run"] == here["run"] == names[2]


@pytest.mark.few(1)
@pytest.mark.parametrize("multiturn", [True, False])
def test_chats_and_solved_examples(folder: Path, multiturn: bool) -> None:
    options = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn, "num_fewshot": 1}
    found = evaluate(folder, "dllm_sums", limit=2, model_args={"gen_length": 16}, **options)
    (first, _), second = (s["arguments"][0] for s in found["samples"]["dllm_sums"])
    assert PROMPTS[0] in first
    # The embedded model's template keeps the last turn alone.
    assert (first == PROMPTS[0]) == multiturn
    assert PROMPTS[1] in second[0]


@pytest.mark.slow  # lm_eval reads its thousands of tasks first
def test_the_command_line_prints_the_harness_table(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--model", "dllm", "--model_args", "pretrained=tiny,gen_length=32,threshold=0.7"]
    more = [
        "--tasks",
        "dllm_sums",
        "--include_path",
        str(folder),
        "--limit",
        "2",
        "--device",
        "cpu",
    ]
    to = ["--output_path", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["harness", *flags, *more, *to])
    monkeypatch.setattr(DiffusionLM, "stats_folder", None)
    harness.main()
    assert "exact_match" in capsys.readouterr().out
    assert len(lines_of(tmp_path / "results" / "gen_stats.jsonl")) == 3
    assert list((tmp_path / "results").rglob("results_*.json"))
    monkeypatch.setattr(sys, "argv", ["harness", *flags[:-1], "pretrained=tiny,step=3", *more])
    with pytest.raises(SystemExit, match=r"error: .* step=3: did you mean 'steps'"):
        harness.main()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--output_path", "a/b"], Path("a/b")),
        (["--output_path=a/b.json"], Path("a")),
        (["-o", "c"], Path("c")),
        (["--output", "a", "--tasks", "x"], None),
        ([], None),
    ],
)
def test_the_output_folder_is_found(arguments: list[str], expected: Path | None) -> None:
    assert harness.output_folder(["run", "--model", "dllm", *arguments]) == expected


# Requests.


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_come_in_order_and_do_not_depend_on_the_batch(temperature: float) -> None:
    arguments = {"until": "\n\n", "do_sample": temperature > 0, "temperature": temperature}
    texts = []
    for batch_size in (1, 3, 50):
        model = DiffusionLM(pretrained="tiny", batch_size=batch_size, dtype="float64")
        texts.append(model.generate_until(asks(PROMPTS, **arguments), disable_tqdm=True))
    assert texts[0] == texts[1] == texts[2]
    backwards = model.generate_until(asks(PROMPTS[::-1], **arguments), disable_tqdm=True)
    assert backwards == texts[0][::-1]
    assert len(set(texts[0])) == NUM


def test_answers_are_held_to_a_constraint_given_as_text_or_as_data() -> None:
    for given in ("{choice: [leo, ann]}", {"choice": ["leo", "ann"]}):
        model = DiffusionLM(pretrained="tiny", constraint=given)
        texts = model.generate_until(asks(PROMPTS[:2], **GREEDY), disable_tqdm=True)
        assert set(texts) <= {"leo", "ann"}
        assert model.wishes.base.constraint == Choice(["leo", "ann"])


@pytest.mark.slow
def test_repeats_draw_anew_and_runs_do_not(model: DiffusionLM) -> None:
    sampled = {"do_sample": True, "temperature": 9.0, "until": []}
    four = asks([PROMPTS[0]] * 4, **sampled)
    texts = model.generate_until(four, disable_tqdm=True)
    assert len(set(texts)) > 1
    assert model.generate_until(four, disable_tqdm=True) == texts
    other = DiffusionLM(pretrained="tiny", batch_size=4, scheduler="threshold:0.8", seed=1)
    assert set(other.generate_until(four, disable_tqdm=True)) != set(texts)


def test_requests_with_different_arguments_share_a_call(
    model: DiffusionLM, tiny: dllm.HostedModel
) -> None:
    lengths = [16, 32, 16, 48]
    mixed = [
        request("generate_until", prompt, {**GREEDY, "max_gen_toks": length})
        for prompt, length in zip(PROMPTS, lengths, strict=False)
    ]
    texts = model.generate_until(mixed, disable_tqdm=True)
    for prompt, length, text in zip(PROMPTS, lengths, texts, strict=False):
        out = dllm.generate(tiny, prompt, scheduler="threshold:0.8", max_new_tokens=length)
        assert out.texts == (text,)


def test_the_earliest_stop_cuts() -> None:
    asked = Asked([], Settings(), 0, stops(["b", "", "a"]), {})
    assert asked.cut("xxbxxa") == "xx"
    assert asked.cut("xxaxxb") == "xx"
    assert asked.cut("none") == "none"
    assert stops("a") == ("a",)
    assert stops(None) == stops([]) == ()


@pytest.mark.slow
def test_scores_are_the_scorers_in_order(model: DiffusionLM) -> None:
    pairs = [(PROMPTS[0] + "\n86+12=", "98"), ("", "the"), (PROMPTS[1], " 7 and 8 are 15")]
    requests = [request("loglikelihood", *pair) for pair in pairs]
    found = model.loglikelihood(requests, disable_tqdm=True)
    for pair, (score, greedy) in zip(pairs, found, strict=True):
        given = model.encoder.pair(*pair, model.model.spec)
        ((_, alone),) = Scorer(model.model).scores([given])
        if alone.exact:
            assert score == pytest.approx(alone.log_likelihood, abs=1e-4)
            assert greedy == alone.is_greedy
    assert found[0][1]
    again = model.loglikelihood(requests[::-1], disable_tqdm=True)[::-1]
    assert [score for score, _ in again] == pytest.approx([score for score, _ in found], abs=1e-3)
    plain = DiffusionLM(pretrained="tiny", is_check_greedy=False)
    assert not plain.loglikelihood(requests[:1], disable_tqdm=True)[0][1]


def test_perplexity_is_refused(model: DiffusionLM) -> None:
    with pytest.raises(NotImplementedError, match="only has a bound"):
        model.loglikelihood_rolling([])


@pytest.mark.slow
def test_what_was_answered_before_a_failure_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    decode = dllm.generate

    def generate(model: Any, prompts: list[Any], settings: Settings) -> Any:
        if len(asked) == 1 and not ending:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return decode(model, prompts, settings)

    ending: list[int] = []
    monkeypatch.setattr("dllm.eval.lm_eval.adapter.generate", generate)
    options = {"use_cache": str(tmp_path / "answers"), "model_args": {"gen_length": 32}}
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, "dllm_sums", **options)
    ending.append(1)
    resumed = evaluate(folder, "dllm_sums", **options)
    assert asked == [4, 3]
    plain = evaluate(folder, "dllm_sums", model_args={"gen_length": 32})
    assert resumed["results"] == plain["results"]
    assert evaluate(folder, "dllm_sums", **options)["results"] == plain["results"]
    assert asked == [4, 3, 4, 3]


# Text and token ids.


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """An encoder whose tokenizer puts a token before each text, and has a chat template."""
    words = ["<s>", "[UNK]", "<u>", "<a>", "one", "two", "three", "twothree"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    template = (
        "{{ '<s> ' }}{% for m in messages %}{{ '<u> ' if m.role == 'user' else '<a> ' }}"
        "{{ m.content }} {% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
    )
    return Encoder(
        PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", chat_template=template)
    )


def test_special_tokens_come_once(encoder: Encoder) -> None:
    assert encoder.encode("one two") == [0, 4, 5]
    assert encoder.encode("<s> one") == [0, 4]
    chat = encoder.chat([{"role": "user", "content": "one"}], True)
    assert chat == "<s> <u> one <a>"
    assert encoder.encode(chat) == [0, 2, 4, 3]


def test_a_begun_answer_is_continued(encoder: Encoder) -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    text = encoder.chat(messages, add_generation_prompt=False)
    assert text == "<s> <u> one <a> two"
    assert encoder.encode(text) == [0, 2, 4, 3, 5]


@pytest.mark.parametrize(
    ("context", "continuation", "tokens", "start"),
    [
        ("one", " two", (0, 4, 5), 2),
        ("one ", "two", (0, 4, 5), 2),
        ("one two", "three", (0, 4, 7), 2),  # they share a token
        ("", "two", (0, 5), 1),
        ("  ", "two", (0, 5), 1),
        ("one", "", (0, 4), 2),
    ],
)
def test_pairs_are_split_where_the_context_ends(
    encoder: Encoder, context: str, continuation: str, tokens: tuple[int, ...], start: int
) -> None:
    spec = dllm.ModelSpec(20, 64, 19, (1,), 1)
    found = encoder.pair(context, continuation, spec)
    assert (found.tokens, found.start) == (tokens, start)


def test_shifted_models_get_a_first_token(tiny: dllm.HostedModel) -> None:
    assert tiny.tokenizer is not None
    shifted = dllm.ModelSpec(116, 64, 0, (1,), 1, logit_shift=1)
    found = Encoder(tiny.tokenizer).pair("", "98", shifted)
    assert (found.tokens[0], found.start) == (1, 1)
    assert Encoder(tiny.tokenizer).pair("", "98", tiny.spec).start == 0


def test_a_checkpoint_without_template_says_so(tiny: dllm.HostedModel) -> None:
    assert tiny.tokenizer is not None
    plain = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer._tokenizer)
    with pytest.raises(ArgumentError, match="leave out --apply_chat_template"):
        Encoder(plain).chat([{"role": "user", "content": "x"}], True)


# Settings.


def wishes(tiny: dllm.HostedModel, **given: Any) -> Wishes:
    return Wishes(tiny, read_arguments({"pretrained": "tiny", **given}))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"max_gen_toks": 32}, {"max_new_tokens": 32}),
        ({"max_new_tokens": 48, "max_tokens": 16}, {"max_new_tokens": 48}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"do_sample": True, "temperature": 0.3}, {"temperature": 0.3}),
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"num_beams": 1, "until": ["x"]}, {"max_new_tokens": 64, "block_length": 16}),
        ({"gen_length": 32, "block_size": 8}, {"max_new_tokens": 32, "block_length": 8}),
    ],
)
def test_the_task_sets_what_nobody_else_did(
    tiny: dllm.HostedModel, asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = wishes(tiny).settings(asked)
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize("name", ["gen_length", "max_new_tokens", "max_gen_length"])
def test_the_users_length_goes_first_with_one_warning(
    tiny: dllm.HostedModel, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rules = wishes(tiny, **{name: 32}, temperature=0.5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            settings = rules.settings({"max_gen_toks": 256, "temperature": 0.5})
    assert (settings.max_new_tokens, settings.temperature) == (32, 0.5)
    (record,) = caplog.records
    assert "asks for max_new_tokens=256; --model_args has max_new_tokens=32" in record.getMessage()


def test_a_schedulers_settings_rule_out_the_tasks(tiny: dllm.HostedModel) -> None:
    rules = wishes(tiny, remasking="random", steps=64)
    settings = rules.settings({"threshold": 0.5, "max_gen_toks": 64})
    assert dllm.schedulers.registry.create(settings.scheduler).summary() == {
        "name": "fixed_quota",
        "steps": 64,
        "order": "random",
        "tokens_per_step": None,
        "schedule": "masks",
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"temprature": 1}, "unknown setting temprature=1: did you mean 'temperature'"),
        ({"num_beams": 4}, "num_beams=4: there is no beam search"),
        ({"max_gen_toks": 0}, "max_new_tokens=0 must be at least 1"),
    ],
)
def test_what_a_task_must_not_ask(
    tiny: dllm.HostedModel, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        wishes(tiny).settings(asked)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"pretraned": "tiny"},
            "unknown model argument pretraned='tiny': did you mean 'pretrained'",
        ),
        ({"pretrained": "tiny", "treshold": 1}, "did you mean 'threshold'"),
        ({"pretrained": "tiny", "num_beams": 2}, "num_beams=2: there are no beams"),
        ({}, "no checkpoint was given"),
        ({"pretrained": "tiny", "model_path": "x"}, "a second time"),
        ({"pretrained": ""}, "pretrained='' must be"),
        ({"pretrained": "tiny", "batch_size": "auto"}, "batch_size='auto' must be a whole number"),
        ({"pretrained": "tiny", "max_batch_size": 4}, "batch_size=auto, which is not supported"),
        ({"pretrained": "tiny", "batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"pretrained": "tiny", "mc_num": 1.5}, "mc_num=1.5 must be a whole number"),
        ({"pretrained": "tiny", "is_check_greedy": "yes"}, "must be true or false"),
        ({"pretrained": "tiny", "too_long": "crop"}, "must be 'error' or 'cut'"),
        ({"pretrained": "tiny", "seed": [1, 2]}, "seed must be one number"),
        ({"pretrained": "tiny", "constraint": "{regex: '('}"}, "constraint: regex '(' is invalid"),
        ({"pretrained": "tiny", "constraint": "[0-9]+"}, "constraint='[0-9]+': "),
        ({"pretrained": "tiny", "constraint": [None]}, "a list is one for each prompt"),
        ({"pretrained": "tiny", "infill": True}, "unknown model argument infill"),
    ],
)
def test_wrong_arguments_say_what_is_right(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        read_arguments(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pretrained": "nowhere"}, "'nowhere' is not an existing folder"),
        ({"pretrained": "tiny", "dtype": "int3"}, "dtype='int3' is not supported"),
        ({"pretrained": "tiny", "device": "gpu"}, "device"),
        ({"pretrained": "tiny", "scheduler": "treshold"}, "did you mean 'threshold'"),
        ({"pretrained": "tiny", "cache": "block_causal"}, "block"),
        ({"pretrained": "tiny", "gen_length": 0}, "max_new_tokens=0 must be at least 1"),
        ({"pretrained": "tiny", "stats": "/dev/null/x"}, "stats='/dev/null/x' cannot be written"),
    ],
)
def test_a_model_that_cannot_be_says_why(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        DiffusionLM(**given)


def test_numbers_may_come_as_text() -> None:
    found = read_arguments({"model_path": "tiny", "batch_size": "8", "gen_length": 32})
    assert (found.pretrained, found.batch_size, found.settings) == ("tiny", 8, {"gen_length": 32})


def test_cuda_without_cuda_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = DiffusionLM(pretrained="tiny", device="cuda:0")
    if model.device.type == "cpu":
        assert "device='cuda:0' was asked for" in caplog.text


def cut_seed(pair: Instance) -> int:
    return seed_of(0, "loglikelihood", *pair.args, 0)


def test_prompts_that_are_too_long(caplog: pytest.LogCaptureFixture) -> None:
    long, fine = "the " * 250, PROMPTS[0]
    requests = [*asks([fine, long], **GREEDY, max_gen_toks=32)]
    model = DiffusionLM(pretrained="tiny")
    with pytest.raises(ArgumentError, match=r"1 of 2 requests are too long .* too_long=cut"):
        model.generate_until(requests, disable_tqdm=True)
    pair = request("loglikelihood", long, " the" * 20)
    with pytest.raises(ArgumentError, match="too_long=cut"):
        model.loglikelihood([pair], disable_tqdm=True)
    cut = DiffusionLM(pretrained="tiny", too_long="cut", mc_num=8)
    with caplog.at_level(logging.WARNING):
        assert len(cut.generate_until(requests, disable_tqdm=True)) == 2
    assert "the beginning of such contexts is dropped" in caplog.text
    (score, _), spec = cut.loglikelihood([pair], disable_tqdm=True)[0], cut.model.spec
    kept = cut.encoder.pair(pair.args[0], pair.args[1], spec)
    start = spec.max_length - (len(kept.tokens) - kept.start)
    kept = replace(kept, tokens=kept.tokens[-spec.max_length :], start=start)
    ((_, alone),) = Scorer(cut.model, 8).scores([replace(kept, seed=cut_seed(pair))])
    assert score == pytest.approx(alone.log_likelihood, abs=1e-3)
    with pytest.raises(ArgumentError, match="give a smaller gen_length"):
        cut.generate_until(asks([fine], **GREEDY, max_gen_toks=512), disable_tqdm=True)


def test_a_length_that_blocks_do_not_divide_has_a_shorter_last_one(model: DiffusionLM) -> None:
    answers = model.generate_until(asks(PROMPTS, **GREEDY, max_gen_toks=50), disable_tqdm=True)
    assert len(answers) == len(PROMPTS)


# Without it, and with several processes.


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize("name", ["__main__", "dllm.eval.harness"])
def test_without_lm_eval_it_says_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in [part for part in sys.modules if part.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, part)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "dllm.eval.harness")
    ending = SystemExit if name == "__main__" else ImportError  # a line, or a traceback
    with pytest.raises(ending, match=r"pip install 'dllm\[lm-eval\]'"):
        runpy.run_module("dllm.eval.harness", run_name=name)


def means(results: dict[str, dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Returns each mean of each task, without what resampling says of its error."""
    return {
        (task, name): value
        for task, scores in results.items()
        for name, value in scores.items()
        if "," in name and "stderr" not in name
    }


@pytest.mark.slow
def test_two_processes_score_as_one(folder: Path, tmp_path: Path) -> None:
    flags = ("-m", "dllm.eval.harness", "--model", "dllm", "--model_args", "pretrained=tiny")
    more = ("--tasks", "dllm_sums,dllm_choice", "--include_path", str(folder), "--device", "cpu")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517")
    done = run(*launcher, *flags, *more, "--output_path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results_*.json")
    together = json.loads(path.read_text(encoding="utf-8"))["results"]
    alone = evaluate(folder, "dllm_sums", "dllm_choice")["results"]
    assert means(together) == means(alone)
    assert set(means(alone)) == {
        ("dllm_sums", "exact_match,number"),
        ("dllm_choice", "acc,none"),
    }
    parts = [lines_of(tmp_path / name) for name in ("gen_stats.jsonl", "gen_stats.rank1.jsonl")]
    answered = {(line["task"], line["doc_id"]) for part in parts for line in part if "task" in line}
    assert len(answered) == 2 * NUM


# Where the harness' versions after 0.4.13 find the model.


def test_the_entry_point_names_the_class_as_the_harness_compares_it() -> None:
    named = PROJECT["project"]["entry-points"]["lm_eval.models"]
    (found,) = (EntryPoint(name, value, "lm_eval.models") for name, value in named.items())
    assert found.name == "dllm"
    kind = found.load()
    assert kind is DiffusionLM
    assert issubclass(kind, LM)
    # A placeholder that the class' own decorator replaces, which it does for the same path alone.
    plugins: Registry[Any] = Registry("model", base_cls=LM)
    plugins.register("dllm", target=found.value)
    plugins.register("dllm")(kind)
    assert plugins.get("dllm") is DiffusionLM


def test_the_harness_own_models_stay_known() -> None:
    code = (
        "import dllm.eval.harness, lm_eval.api.registry as r; print(r.get_model('dummy').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DummyLM" in done.stdout, done.stderr
