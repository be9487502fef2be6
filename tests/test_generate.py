"""The front door: inputs, settings, endings, interruptions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

import dllm
from dllm.state.plan import StepPlan
from tests.support.models import golden_model, random_prompts

SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}
MASK, END = 126, 127


@pytest.fixture
def model() -> dllm.HostedModel:
    return golden_model("llada_gqa")


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        ([], {}, "the list is empty"),
        ([[1] * 250], {}, "over the model's limit of 256"),
        ([[1, MASK, 2]], {}, r"mask token \(id 126\) at position 1"),
        ([[1, 2]], {"infill": True}, "no mask token to fill"),
        ([[1, 500]], {}, "outside the vocabulary of 128"),
        ([[1, 2]], {"fixed": {15: 3, 16: 4}}, "does not fit the 16 new tokens"),
        ([[1, 2]], {"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ([[1, 2]], {"top_p": 0.0}, r"must be in \(0, 1\]"),
        ([[1, 2]], {"seed": [1, 2]}, "2 seeds were given for 1 prompts"),
        ([[1, 2]], {"scheduler": "fixed_quota:steps=3"}, "multiple of the 2 blocks"),
        ([[1, 2]], {"cache": "duel"}, "did you mean 'dual'"),
        ([[1, 2]], {"cache": "prefix:first_token=force"}, "shifted logits"),
        ([[1, 2]], {"max_new_tokens": 0}, "at least 1"),
        ([[1, 2]], {"statistics_dtype": torch.bfloat16}, "float32 or torch.float64"),
        (["text"], {}, "no tokenizer"),
    ],
)
def test_bad_input_is_explained(
    model: dllm.HostedModel, prompts: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.generate(model, prompts, **{**SLOTS, **given})


def test_unknown_settings_name_the_nearest(model: dllm.HostedModel) -> None:
    with pytest.raises(TypeError, match="did you mean 'block_length'"):
        dllm.generate(model, [[1]], block_lenght=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="a second time"):
        dllm.generate(model, [[1]], max_new_tokens=8, gen_length=8)


def test_an_empty_prompt_needs_a_token_where_logits_are_shifted(model: dllm.HostedModel) -> None:
    assert len(dllm.generate(model, [[]], **SLOTS).sequences[0]) == 16
    with pytest.raises(ValueError, match="predicts each token from the one before"):
        dllm.generate(golden_model("dream_gqa"), [[]], **SLOTS)


def test_other_papers_names(model: dllm.HostedModel) -> None:
    prompt = random_prompts(1)
    ours = dllm.generate(
        model, prompt, scheduler="fixed_quota:steps=8", max_new_tokens=16, block_length=8
    )
    theirs = dllm.generate(
        model, prompt, gen_length=16, block_size=8, steps=8, remasking="low_confidence"
    )
    assert ours.sequences == theirs.sequences
    assert ours.metrics.num_forwards == theirs.metrics.num_forwards == 8
    with pytest.raises(ValueError, match="no option 'steps'"):
        dllm.generate(model, prompt, scheduler="threshold", steps=8)


def test_end_tokens_stop_a_row_and_fill_the_rest() -> None:
    model = golden_model("llada_eos")
    prompts = random_prompts(6, seed=5)
    options: dict[str, Any] = {"max_new_tokens": 64, "block_length": 16}
    free = dllm.generate(model, prompts, at_eos="ignore", **options)
    stopped = dllm.generate(model, prompts, **options)
    ended = 0
    rows = zip(prompts, free.sequences, stopped.sequences, stopped.metrics.rows, strict=True)
    for index, (prompt, full, cut, row) in enumerate(rows):
        answer = list(full[len(prompt) :])
        end = answer.index(END) if END in answer else 64
        assert list(cut[len(prompt) :][:end]) == answer[:end]
        assert row.valid_tokens == end
        if row.finish_reason == "eos":
            ended += 1
            tail = cut[len(prompt) + end :]
            assert model.spec.mask_token_id not in tail
            steps = stopped.trace.commit_step[index, len(prompt) + end : len(cut)].tolist()
            assert all(t == END for t, step in zip(tail, steps, strict=True) if step < 0)
    assert ended >= 3
    assert stopped.metrics.num_forwards < free.metrics.num_forwards
    forbidden = dllm.generate(model, prompts, forbid_eos=True, **options)
    assert all(END not in s[len(p) :] for p, s in zip(prompts, forbidden.sequences, strict=True))


def test_infill_keeps_what_is_given() -> None:
    for name in ("llada_gqa", "dream_gqa"):
        model = golden_model(name)
        given = [3, 9, MASK, MASK, 7, MASK, 11, 12]
        for cache in ("none", "prefix", "dual"):
            rows = [given, [5, *given, 8, MASK]]
            out = dllm.generate(model, rows, infill=True, block_length=2, cache=cache)
            for ids, sequence in zip(rows, out.sequences, strict=True):
                assert len(sequence) == len(ids)
                assert all(b == a for a, b in zip(ids, sequence, strict=True) if a != MASK)
                assert MASK not in sequence
            assert out.metrics.rows[0].valid_tokens == 3


def test_guidance_changes_the_answer_and_works_with_caches(model: dllm.HostedModel) -> None:
    prompts = random_prompts(3)
    plain = dllm.generate(model, prompts, **SLOTS).sequences
    for cache in ("none", "prefix", "dual"):
        guided = dllm.generate(model, prompts, guidance_scale=1.0, cache=cache, **SLOTS).sequences
        alone = [
            dllm.generate(model, [p], guidance_scale=1.0, cache=cache, **SLOTS).sequences[0]
            for p in prompts
        ]
        assert guided == tuple(alone)
        assert guided != plain


class Faulty:
    """A model that misbehaves at its third pass."""

    def __init__(self, model: dllm.HostedModel, fault: Any) -> None:
        self.model, self.fault, self.passes = model, fault, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: Any) -> Tensor:
        self.passes += 1
        logits = self.model.forward(tokens, plan, store)
        return self.fault(logits) if self.passes == 3 else logits


def test_nan_logits_are_reported_and_nothing_is_lost(model: dllm.HostedModel) -> None:
    def poison(logits: Tensor) -> Tensor:
        logits[1] = float("nan")
        return logits

    faulty: Any = Faulty(model, poison)
    with pytest.raises(dllm.BrokenLogitsError, match=r"row\(s\) \[1\]") as caught:
        dllm.generate(faulty, random_prompts(3), scheduler="fixed_quota", **SLOTS)
    partial = caught.value.partial
    assert partial is not None
    assert [row.raw_tokens for row in partial.metrics.rows] == [3, 2, 3]


def test_ctrl_c_keeps_what_was_committed(model: dllm.HostedModel) -> None:
    def interrupt(logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    faulty: Any = Faulty(model, interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        dllm.generate(faulty, random_prompts(2), scheduler="fixed_quota", **SLOTS)
    assert isinstance(caught.value, dllm.GenerationInterrupted)
    rows = caught.value.partial.metrics.rows
    assert [row.raw_tokens for row in rows] == [2, 2]
    assert {row.finish_reason for row in rows} == {"interrupted"}


@pytest.mark.few(1)
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("scheduler", ["threshold:0.3", "wino:0.3", "prophet", "multi_block:0.4"])
def test_a_bar_ends_full_and_changes_nothing(
    model: dllm.HostedModel,
    batch_size: int | None,
    scheduler: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, Any] = {**SLOTS, "scheduler": scheduler, "batch_size": batch_size, "seed": 1}
    out = dllm.generate(model, random_prompts(5), progress=True, **given)
    assert out.sequences == dllm.generate(model, random_prompts(5), **given).sequences
    said = capsys.readouterr()
    assert said.out == ""
    assert "100% 5 of 5 rows, " in said.err


@pytest.mark.parametrize("scheduler", ["threshold:0.3", "fixed_quota", "dream", "multi_block:0.4"])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_no_row_has_more_masks_than_an_event_says(
    model: dllm.HostedModel, scheduler: str, cache: str
) -> None:
    running = dllm.stream(model, random_prompts(3), scheduler=scheduler, cache=cache, **SLOTS)
    lefts = []
    for event in running:
        canvas = running.canvas
        masks = (canvas.masked & ~canvas.finished[:, None]).sum(1)
        assert int(masks.max()) <= event.left <= 16
        lefts.append(event.left)
    assert lefts == sorted(lefts, reverse=True)
    assert lefts[-1] == 0


def test_a_bar_asks_the_device_for_nothing(
    model: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers = [0]
    original = torch.Tensor.tolist

    def counted(self: Tensor) -> Any:
        transfers[0] += 1
        return original(self)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    counts = []
    for progress in (False, True):
        transfers[0] = 0
        dllm.generate(model, random_prompts(3), progress=progress, **SLOTS)
        counts.append(transfers[0])
    assert counts[0] == counts[1] > 0


def test_a_callback_gets_the_events_of_the_stream(model: dllm.HostedModel) -> None:
    seen: list[dllm.StepEvent] = []
    dllm.generate(model, random_prompts(2), callback=seen.append, **SLOTS)
    events = list(dllm.stream(model, random_prompts(2), **SLOTS))
    assert len(seen) == len(events)
    for one, other in zip(seen, events, strict=True):
        assert torch.equal(one.committed, other.committed)
        assert one.finished == other.finished


@pytest.mark.parametrize("progress", [False, True])
def test_what_a_callback_raises_ends_the_generation(
    model: dllm.HostedModel, progress: bool
) -> None:
    def raising(error: BaseException) -> Any:
        def callback(event: dllm.StepEvent) -> None:
            raise error

        return callback

    common: dict[str, Any] = {**SLOTS, "progress": progress, "scheduler": "fixed_quota"}
    with pytest.raises(LookupError, match="enough"):
        dllm.generate(model, random_prompts(2), callback=raising(LookupError("enough")), **common)
    with pytest.raises(dllm.GenerationInterrupted) as caught:
        dllm.generate(model, random_prompts(2), callback=raising(KeyboardInterrupt()), **common)
    rows = caught.value.partial.metrics.rows
    assert [row.raw_tokens for row in rows] == [1, 1]


def test_stream_and_trace_tell_the_same_story(model: dllm.HostedModel) -> None:
    prompts = random_prompts(2)
    running = dllm.stream(model, prompts, scheduler="threshold:0.6", at_eos="ignore", **SLOTS)
    seen: list[list[list[tuple[int, int]]]] = [[], []]
    for event in running:
        for row in range(2):
            columns, tokens = event.columns[row].tolist(), event.tokens[row].tolist()
            written = event.committed[row].tolist()
            pairs = zip(columns, tokens, written, strict=True)
            commits = [(column, token) for column, token, new in pairs if new]
            if commits:
                seen[row].append(commits)
    out = running.output
    for row in range(2):
        assert out.trace.commits(row) == seen[row]
        canvases = list(out.trace.replay(row))
        assert canvases[-1][: len(out.sequences[row])] == list(out.sequences[row])
        assert canvases[0].count(MASK) == 16
    finite = out.trace.confidence[out.trace.commit_step >= 0]
    assert ((finite > 0) & (finite <= 1)).all()


def test_metrics_count_what_was_fed(model: dllm.HostedModel) -> None:
    prompts = [[1] * 10, [2] * 10]
    out = dllm.generate(
        model, prompts, scheduler="fixed_quota", cache="dual", at_eos="ignore", **SLOTS
    )
    metrics = out.metrics
    assert metrics.forwards == {"refresh": 2, "step": 14}
    assert metrics.tokens_fed == 2 * (2 * 26 + 14 * 8)
    assert metrics.raw_tokens == 32
    assert metrics.raw_tokens_per_forward == 1.0
    assert metrics.store_bytes == 2 * 3 * (2 * (26 + 8) + 1) * 2 * 16 * 8
    assert metrics.to_dict()["num_forwards"] == 16


def test_generators_seed_rows(model: dllm.HostedModel) -> None:
    def run(seed: int) -> Any:
        source = torch.Generator().manual_seed(seed)
        return dllm.generate(
            model, random_prompts(2), generator=source, temperature=1.0, **SLOTS
        ).sequences

    assert run(1) == run(1) != run(2)


def test_temperature_follows_the_distribution() -> None:
    """Gumbel noise draws from the softmax: a chi-square test over one slot."""
    from dllm.state.candidates import Sampling
    from dllm.state.noise import CounterNoise

    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 5.0]).expand(4000, 1, 5)
    sampling = Sampling(mask_token_id=4, temperature=0.7)
    noise = CounterNoise(torch.arange(4000))
    zeros = torch.zeros(4000, dtype=torch.int64)
    drawn = sampling.propose(logits, noise, zeros[:, None], zeros).token.flatten()
    expected = (logits[0, 0, :4] / 0.7).softmax(-1) * 4000
    counts = torch.bincount(drawn, minlength=5)
    assert counts[4] == 0, "the mask token was proposed"
    chi_square = ((counts[:4] - expected) ** 2 / expected).sum()
    assert chi_square < 16.3, "three degrees of freedom, p = 0.001"


def test_top_k_and_top_p_cut_the_tail() -> None:
    from dllm.state.candidates import Sampling
    from dllm.state.noise import CounterNoise

    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(500, 1, 4)
    zeros = torch.zeros(500, dtype=torch.int64)
    noise = CounterNoise(torch.arange(500))
    for options, allowed in (
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.45}, {0}),
    ):
        sampling = Sampling(mask_token_id=3, temperature=1.0, **options)
        token = sampling.propose(logits, noise, zeros[:, None], zeros).token
        assert set(token.flatten().tolist()) == allowed
    tempered = Sampling(mask_token_id=3, temperature=0.5, confidence="tempered")
    raw = Sampling(mask_token_id=3, temperature=0.5)
    both = [s.propose(logits, noise, zeros[:, None], zeros) for s in (tempered, raw)]
    assert both[0].confidence.max() > both[1].confidence.max()


def block_causal_model(logit_shift: Any) -> dllm.HostedModel:
    from dllm.models import NetworkConfig
    from dllm.models.transformer import Transformer

    torch.manual_seed(0)
    network = Transformer(
        NetworkConfig(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            rope_theta=1e4,
            rms_norm_eps=1e-6,
            qk_norm=True,
        )
    )
    for weight in network.parameters():
        weight.data *= 3 if weight.dim() == 2 else 1
    spec = dllm.ModelSpec(
        vocab_size=60,
        max_length=64,
        mask_token_id=59,
        eos_token_ids=(58,),
        pad_token_id=58,
        logit_shift=logit_shift,
        attention="block_causal",
        block_length=4,
    )
    return dllm.HostedModel("block-causal", network.double().eval(), spec)


@pytest.mark.few(2)
@pytest.mark.parametrize("logit_shift", [0, 1])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_block_causal_models_count_blocks_from_zero(logit_shift: int, cache: str) -> None:
    model = block_causal_model(logit_shift)
    prompts = [[1, 2, 3, 4, 5], [6, 7], [8] * 9, [9] * 8]
    options: dict[str, Any] = {"scheduler": "fixed_quota", "cache": cache, "at_eos": "ignore"}
    together = dllm.generate(model, prompts, max_new_tokens=12, **options)
    for prompt, sequence in zip(prompts, together.sequences, strict=True):
        alone = dllm.generate(model, [prompt], max_new_tokens=12, **options).sequences[0]
        assert sequence == alone
        shorter = dllm.generate(model, [prompt], max_new_tokens=4, **options).sequences[0]
        assert shorter == sequence[: len(prompt) + 4], "a last block is not decoded as a whole"
    running = dllm.stream(model, prompts[:1], max_new_tokens=12, **options)
    starts = [int(event.columns[0, 0]) for event in running]
    assert starts == [4] * 3 + [8] * 4 + [12] * 4 + [16] * 4
    with pytest.raises(ValueError, match="not a multiple of the 4"):
        dllm.generate(model, prompts, max_new_tokens=12, block_length=6)


def test_prompts_that_are_too_long_are_cut_if_asked_to(tiny: dllm.HostedModel) -> None:
    limit = tiny.spec.max_length
    long = [3 + place % 50 for place in range(limit + 9)]
    options: dict[str, Any] = {"max_new_tokens": 16, "scheduler": "threshold:0.5"}
    cut = dllm.generate(tiny, [long, [5, 6, 7]], too_long="cut", **options)
    fits = dllm.generate(tiny, [long[-(limit - 16) :], [5, 6, 7]], **options)
    assert cut.sequences == fits.sequences
    assert [row.prompt_tokens for row in cut.metrics.rows] == [limit - 16, 3]
    with pytest.raises(ValueError, match="or set too_long='cut'"):
        dllm.generate(tiny, [long], **options)
    with pytest.raises(ValueError, match="over the model's limit"):  # nothing of it would be left
        dllm.generate(tiny, [long], too_long="cut", max_new_tokens=limit)
    with pytest.raises(ValueError, match="too_long='drop' must be 'error' or 'cut'"):
        dllm.generate(tiny, [long], too_long="drop", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eos_token_id": -1}, "eos_token_id=-1 must be a token id"),
        ({"eos_token_id": 128}, "eos_token_id=128 is outside"),
        ({"eos_token_id": [END, 128]}, "eos_token_id=128 is outside"),
        ({"eos_token_id": MASK}, "eos_token_id=126 is the mask token"),
        ({"forbidden_token_ids": [-40]}, r"forbidden_token_ids=\[-40\] must be a token id"),
        ({"forbidden_token_ids": [MASK]}, "forbidden_token_ids=126 is the mask token"),
        ({"forbidden_token_ids": [*range(MASK), END]}, "forbidden_token_ids holds every token"),
        ({"deferred_token_ids": [3, 900]}, "deferred_token_ids=900 is outside"),
        ({"fixed": {0: 128}}, "token id=128 is outside"),
        ({"fixed": {0: MASK}}, "token id=126 is the mask token"),
        ({"fixed": {0: 1.5}}, "token id=1.5 is no token id"),
        ({"fixed": {"a": 1}}, r"fixed=\{'a': 1\}: the slot must be a whole number"),
        ({"scheduler": "adablock:delimiters=[3, 198]"}, "delimiters=198 is outside"),
        ({"scheduler": "adablock:delimiters=[-1]"}, r"delimiters=\[-1\] must be a token id"),
        ({"scheduler": "prophet:region=marker,marker=[128]"}, "marker=128 is outside"),
        ({"max_new_tokens": 10**8}, "max_new_tokens=100000000 must be at most 1048576"),
    ],
)
def test_ids_and_counts_that_the_model_does_not_have(
    model: dllm.HostedModel, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.generate(model, [[1, 2]], **{**SLOTS, **given})
    endless = replace(model, spec=replace(model.spec, max_length=2**31 - 1))
    with pytest.raises(ValueError, match="must be at most 1048576"):
        dllm.generate(endless, [[1]], max_new_tokens=10**8)


def test_a_count_is_compared_before_a_list_of_it_is_made(model: dllm.HostedModel) -> None:
    hasty = replace(model, defaults={"max_new_tokens": 10**15})
    with pytest.raises(ValueError, match="must be at most 1048576"):
        dllm.generate(hasty, [[1]])
    with pytest.raises(ValueError, match="prompt 0: the tokens to fill=1000000000000000 is over"):
        dllm.generate(model, dllm.Infill(10**15))


def test_ids_of_a_checkpoints_defaults(model: dllm.HostedModel) -> None:
    wishes = replace(model, defaults={"forbidden_token_ids": [3]})
    given = dllm.generate(model, [[1]], forbidden_token_ids=[3], **SLOTS)
    assert dllm.generate(wishes, [[1]], **SLOTS).sequences == given.sequences
    wrong = replace(model, defaults={"forbidden_token_ids": [-40]})
    with pytest.raises(ValueError, match=r"forbidden_token_ids=\[-40\] must be a token id"):
        dllm.generate(wrong, [[1]], **SLOTS)


@pytest.mark.parametrize("token", [-1, 128])
def test_prompts_of_other_vocabularies(model: dllm.HostedModel, token: int) -> None:
    for prompts, options in (([[1], [2, token]], SLOTS), ([[1, MASK], [token, MASK]], INFILL)):
        with pytest.raises(ValueError, match=f"prompt 1: token id={token} is outside"):
            dllm.generate(model, prompts, **options)


INFILL: dict[str, Any] = {"infill": True, "block_length": 1}
ROWS = [[5, 6, 7], [9, 8]]
PADDED, SEEN = [[5, 6, 7], [END, 9, 8]], [[1, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize(
    "prompts",
    [
        BatchEncoding({"input_ids": torch.tensor(PADDED), "attention_mask": torch.tensor(SEEN)}),
        BatchEncoding({"input_ids": PADDED, "attention_mask": torch.tensor(SEEN).float()}),
        {"input_ids": np.array(PADDED), "attention_mask": np.array(SEEN, dtype=bool)},
        {"input_ids": ROWS},
        {"input_ids": [torch.tensor(row) for row in ROWS]},
        [np.array(row) for row in ROWS],
        [torch.tensor(row) for row in ROWS],
        [[np.int64(token) for token in row] for row in ROWS],
        [{"input_ids": [5, 6, 7]}, BatchEncoding({"input_ids": torch.tensor([[9, 8]])})],
    ],
)
def test_what_a_tokenizer_returns_is_a_prompt(model: dllm.HostedModel, prompts: Any) -> None:
    assert dllm.generate(model, prompts, **SLOTS).sequences == (
        dllm.generate(model, ROWS, **SLOTS).sequences
    )


def test_one_row_of_ids(model: dllm.HostedModel) -> None:
    expected = dllm.generate(model, [[5, 6, 7]], **SLOTS).sequences
    forms: list[Any] = [[5, 6, 7], np.array([5, 6, 7]), torch.tensor([5, 6, 7])]
    for prompts in forms:
        assert dllm.generate(model, prompts, **SLOTS).sequences == expected
        seen = {"input_ids": prompts, "attention_mask": [1, 1, 1]}
        assert dllm.generate(model, seen, **SLOTS).sequences == expected


def test_the_names_of_transformers(model: dllm.HostedModel) -> None:
    given: dict[str, Any] = {"input_ids": torch.tensor(PADDED), "attention_mask": SEEN}
    expected = dllm.generate(model, ROWS, **SLOTS).sequences
    assert dllm.generate(model, **given, **SLOTS).sequences == expected
    assert dllm.generate(model, PADDED, attention_mask=SEEN, **SLOTS).sequences == expected
    with pytest.raises(TypeError, match="prompts and input_ids were given"):
        dllm.generate(model, ROWS, **given, **SLOTS)
    with pytest.raises(TypeError, match="attention_mask was given without input_ids"):
        dllm.generate(model, attention_mask=SEEN, **SLOTS)
    with pytest.raises(TypeError, match="no prompts were given"):
        dllm.generate(model, **SLOTS)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, ValueError, "differ in shape"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, -1e9]]}, ValueError, "1 marks a token"),
        ({"input_ids": 5}, TypeError, "input_ids must be token ids"),
        ({"role": "user", "content": "x"}, TypeError, "put chat messages into a list"),
        ([True, False], TypeError, "prompt 0 is .True, False.: give text"),
        ([[1.5, 2.0]], TypeError, "prompt 0 is .1.5, 2.0.: give text"),
        (torch.tensor([[1.0]]), TypeError, "prompt 0 is"),
        (b"bytes", TypeError, "not bytes"),
        ([[1], b"bytes"], TypeError, "prompt 1 is b'bytes'"),
        (5, TypeError, "not int"),
        ([{"role": "user", "content": None}], ValueError, "content=None: give a text"),
        ([{"role": "user", "content": ["x"]}], ValueError, r"content=\['x'\]: give a text"),
        ([{"role": 1, "content": "x"}], ValueError, "role=1: give a text"),
        ([[[1]]], TypeError, "prompt 0 is"),
        (("def f(x):", 12, "return x"), TypeError, "prompt 1 is 12: .*dllm.Infill"),
    ],
)
def test_what_is_no_prompt(
    tiny: dllm.HostedModel, prompts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dllm.generate(tiny, prompts, **SLOTS)


def test_half_characters_are_named(tiny: dllm.HostedModel) -> None:
    message = r"has '\\ud800' at position 2, half of a character"
    chat: Any = [{"role": "user", "content": "a \ud800"}]
    batches: list[Any] = [["tom", "a \ud800"], ["tom", dllm.Infill("a \ud800", 4)]]
    for prompts in batches:
        with pytest.raises(ValueError, match=f"prompt 1 {message}"):
            dllm.generate(tiny, prompts)
    with pytest.raises(ValueError, match=r"prompt 0 has '\\ud800'"):
        dllm.generate(tiny, chat)
    with pytest.raises(ValueError, match=r"fixed=\{0: .* has .* half of a"):
        dllm.generate(tiny, ["tom"], fixed={0: "a \ud800"})


def test_what_is_no_model_and_no_settings(tiny: dllm.HostedModel) -> None:
    calls: list[Any] = [dllm.generate, dllm.stream]
    for call in calls:
        with pytest.raises(TypeError, match=r"model='tiny' is a name: .*dllm.load\('tiny'\)"):
            call("tiny", "tom")
        with pytest.raises(TypeError, match=r"model=Linear is none .*dllm.wrap"):
            call(torch.nn.Linear(2, 2), "tom")
        with pytest.raises(TypeError, match=r"settings is a mapping: .*\*\*settings"):
            call(tiny, "tom", {"max_new_tokens": 8})
        with pytest.raises(TypeError, match=r"settings=64 must be dllm.Settings"):
            call(tiny, "tom", 64)


def test_two_entries_of_fixed_for_one_slot(model: dllm.HostedModel, tiny: dllm.HostedModel) -> None:
    with pytest.raises(ValueError, match="lies over slots that another entry of fixed holds"):
        dllm.generate(tiny, "tom", fixed={0: "copy: tom", 1: 5})
    out = dllm.generate(model, [[1]], fixed={0: 5, 15: np.int64(6)}, **SLOTS)
    assert (out.sequences[0][1], out.sequences[0][16]) == (5, 6)


def test_an_infill_is_as_long_as_its_gaps(tiny: dllm.HostedModel) -> None:
    assert tiny.defaults["block_length"] == 16
    gaps = dllm.Infill("def f(x):", 12, "return x")
    out = dllm.generate(tiny, gaps)
    assert out.texts is not None
    assert out.texts[0].strip().endswith("return x")
    assert out.sequences == dllm.generate(tiny, gaps, block_length=14).sequences
    short = dllm.generate(tiny, "tom", max_new_tokens=8, block_length=16)
    assert short.sequences == dllm.generate(tiny, "tom", max_new_tokens=8).sequences
    trained = block_causal_model(0)
    assert len(dllm.generate(trained, [[1, 59, 59, 59]], infill=True).sequences[0]) == 4


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (("a", "b"), ValueError, "has no gap"),
        ((), ValueError, "has no gap"),
        (("a", 0), ValueError, "gap 0 must be a number of tokens of at least 1"),
        (("a", True), TypeError, "part True must be a text or a number of tokens"),
        (("a", 2.0), TypeError, "part 2.0 must be"),
        (("a", None), TypeError, "part None must be"),
    ],
)
def test_parts_of_an_infill(parts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dllm.Infill(*parts)
