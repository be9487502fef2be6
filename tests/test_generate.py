"""The front door: inputs, settings, endings, interruptions."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.aliases import ALIASES, SCHEDULER_OPTIONS, WITHOUT_EFFECT
from dllm.settings import Given
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
        complete = (len(prompt) + 4) // 4 * 4
        assert shorter[:complete] == sequence[:complete], "a block saw what comes after it"
    running = dllm.stream(model, prompts[:1], max_new_tokens=12, **options)
    starts = [int(event.columns[0, 0]) for event in running]
    assert starts == [4] * 3 + [8] * 4 + [12] * 4 + [16]
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
    given = set(Given.__annotations__)
    assert given == {f.name for f in fields(dllm.Settings)} | {*ALIASES, *SCHEDULER_OPTIONS} | {
        *WITHOUT_EFFECT
    }
