"""DiffusionGemma: the same canvases as transformers' own generate, and the project's own laws."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.doctor import checkpoint, examine_model
from dllm.eval.run.describe import seed_of
from dllm.eval.run.execute import results
from dllm.models.config import CheckpointError
from dllm.models.diffusion_gemma import ARCHITECTURE
from dllm.settings import resolve
from dllm.state.noise import CounterNoise
from dllm.state.progress import AtEnd
from tests.support.gemma import CANVAS, ENDS, IMAGE, VOCABULARY, save_tiny
from tests.support.laws import transfers_of
from tests.support.runs import run_of

if not hasattr(transformers, ARCHITECTURE):
    pytest.skip(f"transformers has no {ARCHITECTURE}", allow_module_level=True)

PROMPTS = [[2, 5, 9, 30, 11, 64, 8, 120, 77], [2, 7], [2, 33, 150, 18, 9, 9, 41]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return dllm.load(folder)


# The oracle: transformers' own loop, whose draws are replaced by the same noise.


class Draws:
    """The noise of a row, in the order in which transformers draws."""

    def __init__(self, seed: int, prompt_length: int) -> None:
        self.noise, self.forward = CounterNoise(torch.tensor([seed])), 0
        self.start = prompt_length - CANVAS  # of the canvas

    def uniform(self, draw: int) -> Tensor:
        columns = torch.arange(self.start, self.start + CANVAS)[None]
        step = torch.tensor([3 * self.forward + draw])
        return self.noise.columns(columns, step, torch.ones(1, CANVAS).bool()).double()

    def randint(self, *, low: int, high: int, size: Any, device: Any) -> Tensor:
        assert (low, high, tuple(size)) == (0, VOCABULARY, (1, CANVAS))
        return (self.uniform(0) * high).floor().long()

    def multinomial(self, probability: Tensor, num_samples: int) -> Tensor:
        sums = probability.double().cumsum(-1)
        fine = (self.uniform(1) * 2**24).floor() / 2**24 + self.uniform(2) / 2**24
        self.forward += 1
        return (sums <= fine[0][:, None] * sums[:, -1:]).sum(-1, keepdim=True)


@contextmanager
def fed_canvases(module: Any) -> Iterator[list[list[int]]]:
    """The canvases that the decoder is fed, in order."""
    seen: list[list[int]] = []

    def note(_: Any, given: Any, named: dict[str, Any]) -> None:
        seen.append(named["decoder_input_ids"][0].tolist())

    hook = module.model.decoder.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    hook.remove()


def theirs(
    module: Any, prompt: list[int], draws: Draws, monkeypatch: pytest.MonkeyPatch, **given: Any
) -> list[int]:
    """Returns what transformers generates from a prompt with replaced draws."""
    prepare = module._prepare_denoiser_inputs

    def begin(**inputs: Any) -> Any:
        draws.start += CANVAS
        return prepare(**inputs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", draws.randint)
        patch.setattr(torch, "multinomial", draws.multinomial)
        patch.setattr(module, "_prepare_denoiser_inputs", begin)
        out = module.generate(torch.tensor([prompt]), **given)
    sequence: list[int] = out.sequences[0].tolist()
    return sequence


def to_end(tokens: list[int], ends: list[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), None)]


CASES: list[dict[str, Any]] = [
    {},
    {"bound": 30.0},
    {"bound": 3.0, "confidence": 2.5, "steps": 20},
    {"bound": 60.0, "confidence": 9.0, "stability": 0, "steps": 20},
    {"bound": 60.0, "confidence": 1.0, "stability": 1, "steps": 24, "heat": (0.05, 0.02)},
    {"bound": 5.0, "confidence": 0.5, "stability": 2, "steps": 40, "heat": (0.03, 0.01)},
]


@pytest.mark.few(1)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_the_same_as_transformers_own_generate(
    model: Any, case: dict[str, Any], prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, confidence = case.get("bound", 0.1), case.get("confidence", 0.005)
    steps, stability = case.get("steps", 8), case.get("stability", 1)
    t_max, t_min = case.get("heat", (0.8, 0.4))
    scheduler = {
        "name": "renoise",
        "steps": steps,
        "entropy_bound": bound,
        "t_max": t_max,
        "t_min": t_min,
        "stability_threshold": stability,
        "confidence_threshold": confidence,
    }
    with fed_canvases(model.module) as ours:
        out = dllm.generate(model, prompt, scheduler=scheduler, seed=11, max_new_tokens=48)
    with fed_canvases(model.module) as expected:
        sequence = theirs(
            model.module,
            prompt,
            Draws(11, len(prompt)),
            monkeypatch,
            max_new_tokens=48,
            max_denoising_steps=steps,
            sampler_config=transformers.models.diffusion_gemma.EntropyBoundSamplerConfig(bound),
            t_max=t_max,
            t_min=t_min,
            stability_threshold=stability,
            confidence_threshold=confidence,
        )
    assert ours == expected
    answer, known = out.sequences[0][len(prompt) :], sequence[len(prompt) :]
    assert to_end(list(answer), ENDS) == to_end(known, ENDS)
    assert out.metrics.rows[0].forwards == len(expected)
    assert out.metrics.forwards["step"] == len(expected)


@pytest.mark.parametrize("at_eos", ["stop", "ignore"])
def test_an_end_token_is_looked_for_in_whole_canvases(
    model: Any, at_eos: AtEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = PROMPTS[0]
    plain = dllm.generate(model, prompt, seed=11, max_new_tokens=48, at_eos="ignore")
    answer = list(plain.sequences[0][len(prompt) :])
    end = next(token for token in answer[CANVAS + 3 :] if token not in answer[: CANVAS + 3])
    place = answer.index(end)
    assert CANVAS < place < 2 * CANVAS
    out = dllm.generate(model, prompt, seed=11, max_new_tokens=48, eos_token_id=end, at_eos=at_eos)
    (row,) = out.metrics.rows
    assert (row.finish_reason, row.valid_tokens) == ("eos", place)
    assert row.forwards == {"stop": 16, "ignore": 24}[at_eos]
    with fed_canvases(model.module) as expected:
        draws = Draws(11, len(prompt))
        sequence = theirs(
            model.module, prompt, draws, monkeypatch, max_new_tokens=48, eos_token_id=end
        )
    if at_eos == "stop":
        assert len(expected) == row.forwards
    assert to_end(sequence[len(prompt) :], [end]) == answer[:place]
    assert to_end(list(out.sequences[0][len(prompt) :]), [end]) == answer[:place]


# Laws of the project.


@pytest.mark.few(1)
@pytest.mark.parametrize("given", [{}, {"batch_size": 2}, {"max_new_tokens": 21}], ids=str)
def test_a_row_does_not_depend_on_its_batch(model: Any, given: dict[str, Any]) -> None:
    seeds = [3, 40, 500]
    scheduler = "renoise:12,entropy_bound=60,confidence_threshold=1,t_max=0.05,t_min=0.02"
    options = {"scheduler": scheduler, "max_new_tokens": 32, **given}
    together = dllm.generate(model, PROMPTS, seed=seeds, **options)
    options.pop("batch_size", None)
    assert len({row.forwards for row in together.metrics.rows}) > 1  # rows end on their own
    for number, prompt in enumerate(PROMPTS):
        alone = dllm.generate(model, prompt, seed=[seeds[number]], **options)
        assert alone.sequences[0] == together.sequences[number]
        assert alone.metrics.rows[0] == together.metrics.rows[number]
        assert len(alone.sequences[0]) == len(prompt) + options["max_new_tokens"]
    # Rows share their passes: as many as the longest one takes, and no more than one an entry.
    forwards, rows = together.metrics.forwards, [row.forwards for row in together.metrics.rows]
    if "batch_size" not in given:
        assert forwards["step"] == max(rows)
        assert forwards["refresh"] <= 1 + len(PROMPTS)
    assert max(rows) <= forwards["step"] < sum(rows)


def test_rows_of_a_pass_see_their_own_columns_alone(model: Any) -> None:
    """Logits of padded rows, with the text in slots that were used before, are those of one row."""
    torch.manual_seed(0)
    texts = [torch.randint(2, 180, (1, length)) for length in (23, 3, 9)]
    blocks, soft = torch.randint(2, 180, (3, CANVAS)), torch.randn(3, CANVAS, VOCABULARY)
    begun = torch.tensor([True, False, True])
    keys = model.new_keys(64)
    _read(model, keys, [torch.full((1, 40), 7)] * 3, parts=1)  # rows that were here before
    _read(model, keys, texts, parts=2)
    together = _denoised(model, keys, texts, blocks, soft, begun)
    for row, text in enumerate(texts):
        alone, only = model.new_keys(64), slice(row, row + 1)
        _read(model, alone, [text], parts=1)
        found = _denoised(model, alone, [text], blocks[only], soft[only], begun[only])
        expected = _of_transformers(
            model.module, text, blocks[only], soft[only] if begun[row] else None
        )
        torch.testing.assert_close(together[only], found, atol=2e-5, rtol=0)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_block_begins_without_the_logits_of_the_last_one(model: Any) -> None:
    seen: list[Tensor] = []

    def note(_: Any, given: Any, named: dict[str, Any]) -> None:
        seen.append(named["self_conditioning_mask"].clone())

    hook = model.module.register_forward_pre_hook(note, with_kwargs=True)
    scheduler = "renoise:12,entropy_bound=60,confidence_threshold=1,t_max=0.05,t_min=0.02"
    options: dict[str, Any] = {"scheduler": scheduler, "at_eos": "ignore", "seed": [3, 40, 500]}
    out = dllm.generate(model, PROMPTS, max_new_tokens=2 * CANVAS, **options)
    hook.remove()
    forwards = [row.forwards for row in out.metrics.rows]
    assert len(set(forwards)) > 1  # rows enter blocks on their own
    for row, count in enumerate(forwards):
        begun = torch.stack(seen)[:count, row]
        assert not begun[0]
        assert int((~begun).sum()) == 2


def _read(model: Any, keys: Any, texts: list[Tensor], parts: int) -> None:
    """Reads texts as rows of one batch, in so many passes."""
    length = torch.tensor([text.shape[1] for text in texts])
    padded = torch.nn.utils.rnn.pad_sequence([text[0] for text in texts], batch_first=True)
    known, reach = torch.zeros_like(length), int(length.max())
    for part in range(1, parts + 1):
        until = length * part // parts
        count = int((until - known).max())
        columns = known[:, None] + torch.arange(count)
        real, columns = columns < until[:, None], columns.clamp(max=reach - 1)
        with torch.inference_mode():
            sight = keys.reading(columns, real, known, reach)
            model.encode(padded.gather(1, columns), sight, keys)
        known = until


def _denoised(
    model: Any, keys: Any, texts: list[Tensor], blocks: Tensor, soft: Tensor, begun: Tensor
) -> Tensor:
    start = torch.tensor([text.shape[1] for text in texts])
    columns = start[:, None] + torch.arange(CANVAS)
    with torch.inference_mode():
        sight = keys.denoising(columns, start + CANVAS, int(start.max()))
        logits: Tensor = model.denoise(blocks, sight, keys, soft, begun)
    return logits


def _of_transformers(module: Any, text: Tensor, block: Tensor, soft: Tensor | None) -> Tensor:
    """Returns the logits that the class gives by itself."""
    with torch.inference_mode():
        cache = transformers.DynamicCache(config=module.config.get_text_config(decoder=True))
        module.model.encoder(input_ids=text, cache=cache)
        out = module(decoder_input_ids=block, cache=cache, self_conditioning_logits=soft)
    logits: Tensor = out.logits
    return logits


@pytest.mark.parametrize("given", [{}, {"max_new_tokens": 21}], ids=str)
def test_one_host_transfer_a_step(
    model: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"scheduler": "renoise:5", "max_new_tokens": 48, "seed": 0, **given}
    events = iter(dllm.stream(model, PROMPTS, at_eos="ignore", **options))
    next(events)  # tables are built once
    waits = transfers_of(events, monkeypatch)
    assert len(waits) >= 9  # of later blocks, too, whose text is encoded
    assert set(waits) == {1}


def test_seeds_choose_the_answer(model: Any) -> None:
    first, again, other = (
        dllm.generate(model, PROMPTS[1], seed=seed, max_new_tokens=16).sequences
        for seed in (1, 1, 2)
    )
    assert first == again != other
    several = dllm.generate(model, PROMPTS[1], seed=1, max_new_tokens=16, n=2).sequences
    assert several == (*first, *other)


def test_a_checkpoint_recommends_its_sampler(tmp_path: Path) -> None:
    bound = transformers.models.diffusion_gemma.EntropyBoundSamplerConfig(0.25)
    save_tiny(
        tmp_path, sampler_config=bound, t_max=0.9, t_min=0.2, stability_threshold=3,
        confidence_threshold=0.5, max_denoising_steps=5, max_new_tokens=16,
    )  # fmt: skip
    model = dllm.load(tmp_path)
    running = dllm.stream(model, "w5 w6", seed=0)
    assert running.scheduler.summary() == {
        "name": "renoise",
        "steps": 5,
        "entropy_bound": 0.25,
        "t_max": 0.9,
        "t_min": 0.2,
        "stability_threshold": 3,
        "confidence_threshold": 0.5,
    }
    assert running.canvas.layout.num_slots == 16
    fewer = dllm.stream(model, "w5 w6", steps=3).scheduler.summary()
    assert fewer == {**running.scheduler.summary(), "steps": 3}


def test_text_goes_in_and_comes_out(model: Any) -> None:
    events: list[Any] = []
    out = dllm.generate(
        model, ["w5 w6 w7", "w9"], max_new_tokens=16, seed=1, callback=events.append
    )
    assert [
        row[: int(n)] for row, n in zip(out.sequences, out.trace.prompt_length, strict=True)
    ] == [
        (5, 6, 7),
        (9,),
    ]
    assert out.texts is not None
    words = [f"w{token}" for token in out.sequences[0][3:] if token not in (0, 1, 3)]
    assert out.texts[0].split() == words
    # A block is written at once; until then, events show what it would be.
    assert out.trace.num_steps(0) == out.metrics.rows[0].forwards == len(events)
    assert not any(event.committed.any() for event in events[:-1])
    assert events[-1].drafts[0].tolist() == list(out.sequences[0][3:])
    stop = out.texts[0].split()[4]
    cut = dllm.generate(model, ["w5 w6 w7"], max_new_tokens=16, seed=1, stop=stop)
    assert cut.metrics.rows[0].finish_reason == "stop"


# Refusals.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheduler": "threshold"}, "Scheduler 'threshold' fills masks: use 'renoise'"),
        ({"cache": "dual"}, "Cache 'dual' has no part in it: use cache='none'"),
        ({"cache": "none:beyond_block=false"}, "Cache 'none' has no part in it"),
        ({"verifier": "ssd"}, "verifier='ssd' has no part in its sampler"),
        ({"guidance_scale": 1.0}, "guidance_scale=1.0 has no part"),
        ({"temperature": 0.7}, r"temperature=0.7 .* options .* t_max, t_min"),
        ({"top_p": 0.9}, "top_p=0.9 has no part"),
        ({"min_new_tokens": 3}, "min_new_tokens=3 has no part"),
        ({"forbid_eos": True}, "forbid_eos=True has no part"),
        ({"fixed": {0: 5}}, r"fixed=\{0: 5\} has no part"),
        ({"infill": True}, "infill"),
        ({"memory": dllm.PromptMemory()}, "memory"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "refused",
)
def test_what_has_no_part_is_refused_by_name(
    model: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.stream(model, [[5, 6, 7]], **given)


@pytest.mark.parametrize("key", IMAGE)
def test_images_are_refused_by_name(model: Any, key: str) -> None:
    with pytest.raises(ValueError, match=f"prompt 1 holds {key}={IMAGE[key]}, a place of an image"):
        dllm.generate(model, [[5], [6, IMAGE[key]]])


def test_prompts_without_a_token_or_with_gaps_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="prompt 0 is empty, and the encoder needs a token"):
        dllm.generate(model, [[]])
    with pytest.raises(ValueError, match="prompt 0 has gaps to fill"):
        dllm.generate(model, dllm.Infill("w5", 4, "w6"))


def test_passes_are_not_observed(model: Any) -> None:
    with pytest.raises(ValueError, match="keep the text by themselves, and are not observed"):
        dllm.Stream(model, [[5]], resolve(model.defaults, None, {}), observer=lambda _: None)


class OlderTransformers:
    """transformers before it had the model."""

    __version__ = "5.0.0"

    def __getattr__(self, name: str) -> Any:
        if name == ARCHITECTURE:
            raise AttributeError(name)
        return getattr(transformers, name)


def test_transformers_without_the_class_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", OlderTransformers())
    with pytest.raises(CheckpointError, match=r"does not have: pip install 'transformers>=5\.24'"):
        dllm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"canvas_length": None}, "lacks canvas_length"),
        ({"text_config": None}, "has no 'text_config'"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"use_bidirectional_attention": "all"}, "'all'; supported: 'vision'"),
        ({"sliding_window": 1}, "sliding_window=1: > 1"),
    ],
    ids=str,
)
def test_a_configuration_that_lacks_something(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text())
    of_text = next(iter(change)) in ("use_bidirectional_attention", "sliding_window")
    (config["text_config"] if of_text else config).update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        dllm.load(tmp_path / "copy")


def test_missing_weights_and_speed_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        dllm.load(tmp_path / "copy")
    with pytest.raises(ValueError, match="speed='fused' is for networks that dllm hosts"):
        dllm.load(folder, speed="fused")


# Where users meet it.


def test_the_command_and_its_files(folder: Path, tmp_path: Path) -> None:
    common = ["generate", "w5 w6", "--model", str(folder), "--max-new-tokens", "16", "--seed", "1"]
    done = CliRunner().invoke(app, [*common, "--json", "--scheduler", "renoise:3"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["metrics"]["forwards"] == {"refresh": 1, "step": 3}
    assert record["metrics"]["rows"][0]["valid_tokens"] == 16
    trace = tmp_path / "trace.json"
    watched = CliRunner().invoke(app, [*common, "--watch", "--trace", str(trace)])
    assert watched.exit_code == 0, watched.output
    assert trace.exists()
    refused = CliRunner().invoke(app, [*common, "--cache", "dual"])
    assert refused.exit_code != 0
    assert "use cache='none'" in str(refused.exception)


def test_doctor_looks_at_it_without_a_weight(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__init__", None)  # no network is made
    place, found = examine_model(str(folder), torch.device("cpu"))
    assert (place.subject, found.level) == ("checkpoint", "ok")
    assert f"canvases of {CANVAS} columns, no mask, end 1, 106; at most 256" in found.text
    monkeypatch.setattr(checkpoint, "transformers", SimpleNamespace(__version__="5.0"))
    found = list(examine_model(str(folder), torch.device("cpu")))[1]
    assert found.level == "failure"
    assert found.way_out == "pip install 'transformers>=5.24'"


def test_a_run_of_a_task_records_answers_and_forwards(model: Any) -> None:
    settings = {**model.defaults, "max_new_tokens": 32, "seed": 0, "steps": 4}
    setup = run_of(model, num_rows=2, **settings)
    problems = list(setup.task.problems("test", 0, 3))
    found = [result for part in results(setup, problems) for result in part]
    assert sorted(one.id for one in found) == sorted(problem.id for problem in problems)
    for one in found:
        assert one.forwards in (4, 8)
        assert one.settings["scheduler"]["name"] == "renoise"
        assert one.text
        seed = seed_of(0, one.id)
        options = {**model.defaults, "max_new_tokens": 32, "steps": 4, "seed": [seed]}
        alone = dllm.generate(model, one.prompt, **options)
        assert alone.texts == (one.text,)
        assert alone.metrics.rows[0].forwards == one.forwards
    described = setup.describe()
    assert described["dtype"] == "torch.float32"
    assert described["checkpoint"]
