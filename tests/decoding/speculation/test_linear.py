"""Linear self-speculation gives the model's own tokens, decoded one by one, whatever it drafts."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import dllm
from dllm.cache import registry as caches
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.laws import transfers_of
from tests.support.marks import crossed, some
from tests.support.models import Poisoned, family_model, model_of, random_prompts
from tests.support.oracles import hosted, kept_in, oracle
from tests.support.verified import SLOTS, base_of, check_unchanged

FAMILIES = ("NemotronLabsDiffusionModel", "DiffEncoderModel")
MASK, END = 48, 49
VERIFIERS = (
    "linear:1",
    "linear:4",
    "linear:8",
    "linear",
    "linear:8,grow=2",
    "linear:8,threshold=0.3",
    "linear:8,grow=1,threshold=1",
)
PROMPTS = [[3, 4, 5, 6, 7], [8, 9, 10] * 4, [11]]
GIVEN: dict[str, Any] = {"max_new_tokens": 21, "cache": "block_causal"}


@cache
def reference(family: str) -> Any:
    with torch.inference_mode(False):
        return oracle(family).double()


def next_token(family: str, tokens: list[int]) -> int:
    """Returns the most probable token behind a text: a causal pass over all of it, no store."""
    with torch.no_grad():
        logits = reference(family)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    logits[MASK] = -torch.inf
    return int(logits.argmax())


@cache
def greedy(family: str, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Returns a prompt and `count` tokens, one after the other."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(family, tokens))
    return tuple(tokens)


def cut(text: tuple[int, ...], prompt: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a text that is filled up behind the first end token of its answer."""
    for place in range(len(prompt), len(text)):
        if text[place] in ends:
            return text[: place + 1] + (ends[0],) * (len(text) - place - 1)
    return text


class Drafting:
    """A model whose drafts are tokens of `texts` in a share of the columns, and others else."""

    def __init__(self, model: Any, texts: list[tuple[int, ...]], share: float, seed: int = 0):
        self.model, self.share = model, share
        self.source = torch.Generator().manual_seed(seed)
        width = max(map(len, texts)) + 1
        self.texts = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits: Tensor = self.model.forward(tokens, plan, store)
        if plan.kind != "draft":
            return logits
        columns = plan.positions.gather(1, plan.logit_rows).clamp(max=self.texts.shape[1] - 1)
        right = torch.rand(columns.shape, generator=self.source) < self.share
        others = torch.randint(0, MASK, columns.shape, generator=self.source)
        token = torch.where(right, self.texts.gather(1, columns), others)
        scores = torch.randn(logits.shape, generator=self.source, dtype=logits.dtype)
        return scores.scatter(2, token[..., None], 9)


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(("family", "verifier"), crossed(FAMILIES, VERIFIERS))
def test_tokens_are_those_of_one_causal_pass_each(
    family: str, verifier: str, share: float, tmp_path: Path
) -> None:
    """Whatever is drafted: nothing that is right, most of it, or all."""
    hosts = hosted(family, tmp_path, "float64")
    texts = [greedy(family, tuple(prompt), 21) for prompt in PROMPTS]
    model: Any = Drafting(hosts, texts, share) if share else hosts
    for cached in ("block_causal", "none"):
        options = {**GIVEN, "cache": cached, "verifier": verifier}
        out = dllm.generate(model, PROMPTS, at_eos="ignore", **options)
        assert list(out.sequences) == texts
        ends = (texts[0][5 + 9], texts[1][12 + 4], END)  # in the middle of what is accepted
        out = dllm.generate(model, PROMPTS, eos_token_id=list(ends), **options)
        expected = [cut(text, prompt, ends) for text, prompt in zip(texts, PROMPTS, strict=True)]
        assert list(out.sequences) == expected
        for size in (1, 2, 5):
            short = dllm.generate(
                model, PROMPTS[:2], at_eos="ignore", **{**options, "max_new_tokens": size}
            )
            assert list(short.sequences) == [text[: size - 21] for text in texts[:2]]


@dataclass
class Loop:
    """The authors' loop on one row, over transformers' model and its own store."""

    family: str
    block: int
    drafts: Any  # the tokens that are drafted at columns from .. to
    forwards: int = 0

    def run(self, prompt: list[int], count: int) -> tuple[list[int], list[int]]:
        """Returns the tokens, and how many each round kept; the store has all but the last."""
        model, store, kept = reference(self.family), DynamicCache(), [1]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt]), **kept_in(store))
            last = self.best(logits.logits[0, -1:])
            self.forwards = 1
            tokens = [*prompt, *last]
            while (missing := count - (len(tokens) - len(prompt))) > 0:
                width = min(self.block, missing)
                start = len(tokens)
                drafted = [tokens[-1], *self.drafts(start, start + width - 1)]
                assert store.get_seq_length() == start - 1
                fed = torch.tensor([drafted])
                said = self.best(model(input_ids=fed, **kept_in(store)).logits[0])
                self.forwards += 1 + (width > 1)
                right = 0
                while right < width - 1 and said[right] == drafted[right + 1]:
                    right += 1
                tokens += said[: right + 1]
                kept.append(right + 1)
                store.crop(right + 1 - width)
        return tokens, kept

    @staticmethod
    def best(logits: Tensor) -> list[int]:
        logits[:, MASK] = -torch.inf
        return logits.argmax(-1).tolist()


@pytest.mark.parametrize("block", [1, 4, 8, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_rounds_are_those_of_the_authors_loop(family: str, block: int, tmp_path: Path) -> None:
    """Tokens, forwards, and what each round keeps; drafts are wrong at every fifth column."""
    hosts: Any = hosted(family, tmp_path, "float64")
    texts = [greedy(family, tuple(prompt), 21) for prompt in PROMPTS]
    wrong = [tuple(t if n % 5 else (t + 1) % MASK for n, t in enumerate(text)) for text in texts]
    model: Any = Drafting(hosts, wrong, 1.0)
    out = dllm.generate(model, PROMPTS, verifier=f"linear:{block}", at_eos="ignore", **GIVEN)
    for number, (prompt, row) in enumerate(zip(PROMPTS, out.metrics.rows, strict=True)):
        loop = Loop(family, block, lambda a, b, text=wrong[number]: text[a:b])
        tokens, kept = loop.run(prompt, 21)
        assert tokens == list(texts[number]) == list(out.sequences[number])
        assert row.forwards == row.row_forwards == loop.forwards
        assert list(row.accepted) == [kept.count(n) for n in range(1, block + 1)]
    assert block == 1 or max(row.forwards for row in out.metrics.rows) < 21


class Counting:
    """Predicts t + 1 behind t; drafts what `drafted` has at a column."""

    def __init__(self, drafted: dict[int, int]) -> None:
        self.model, self.drafted = family_model("nemotron"), drafted
        self.fed = list[tuple[str, int]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        self.fed.append((plan.kind, tokens.shape[1]))
        token = tokens.gather(1, plan.logit_rows) + 1
        if plan.kind == "draft":
            columns = plan.positions.gather(1, plan.logit_rows)
            token = torch.tensor(
                [[self.drafted.get(c, 99) for c in row] for row in columns.tolist()]
            )
        logits = torch.zeros(*token.shape, self.model.spec.vocab_size, dtype=torch.float64)
        return logits.scatter(2, token.clamp(max=126)[..., None], 9)


def test_a_worked_example() -> None:
    """Behind the prompt 10, 11, 12 stand 13, 14, ... in columns 3, 4, ..., one token a column.

    The prompt's pass gives 13. The draft of columns 4, 5 and 6 is right but for column 6: the
    causal pass over 13, 14, 15, 99 agrees with 14 and 15, and says 16 itself. Then 17, 18 and 19
    are right, and the pass says 20 besides; 21 alone is missing, and nothing is drafted.
    """
    model: Any = Counting({4: 14, 5: 15, 6: 99, 7: 17, 8: 18, 9: 19})
    events = dllm.stream(
        model, [[10, 11, 12]], verifier="linear:4", max_new_tokens=9, cache="block_causal"
    )
    seen = [event.tokens[event.committed].tolist() for event in events]
    assert seen == [[13], [14, 15, 16], [17, 18, 19, 20], [21]]
    assert model.fed == [
        ("step", 3),
        ("draft", 4),
        ("step", 4),
        ("draft", 4),
        ("step", 4),
        ("step", 1),
    ]
    out = events.output
    assert out.sequences[0] == (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
    assert out.metrics.rows[0].accepted == (2, 0, 1, 1)
    assert out.metrics.rows[0].forwards == 6
    assert out.trace.commit_step[0, 3:12].tolist() == list(range(9))
    assert out.metrics.forwards == {"step": 4, "draft": 2}


def test_windows_grow_and_shrink() -> None:
    """Doubled where all was right, halved where at most half was, from 2 columns to 8."""
    right = {column: column + 10 for column in range(40)}
    model: Any = Counting({**right, 18: 99, 19: 99, 20: 99})
    options: dict[str, Any] = {"cache": "block_causal", "max_new_tokens": 30}
    dllm.generate(model, [[10, 11, 12]], verifier="linear:8,grow=2", at_eos="ignore", **options)
    # Columns 3; 4-5; 6-9; 10-17; 18 alone of 8; 19 and 20 alone of 4 and 2; 21-22; 23-26; 27-32.
    widths = [2, 4, 8, 8, 4, 2, 2, 4, 6]
    assert [width for kind, width in model.fed if kind == "draft"] == widths


def test_a_threshold_drafts_until_no_mask_is_left() -> None:
    model: Any = Counting({column: column + 10 for column in range(40)})
    for threshold, passes in ((0.0, 1), (0.9, 1), (1.0, 3)):  # each is as sure as the others
        model.fed.clear()
        out = dllm.generate(
            model,
            [[10, 11, 12]],
            verifier=f"linear:4,threshold={threshold}",
            max_new_tokens=5,
            cache="block_causal",
        )
        assert model.fed == [("step", 3), *[("draft", 4)] * passes, ("step", 4)]
        assert out.metrics.rows[0].forwards == 2 + passes
        assert out.sequences[0] == tuple(range(10, 18))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_nothing_changes_at_any_temperature(verifier: str, temperature: float) -> None:
    """Tokens, steps and confidences are those of the same noise, drawn token by token."""
    prompts = random_prompts(4, high=20, seed=1)
    options: dict[str, Any] = {**SLOTS, "cache": "block_causal", "verifier": verifier}
    options |= {"temperature": temperature, "eos_token_id": [6, 9, 13, 29, 47, 72, 113]}
    for more in ({}, {"top_k": 5, "cache": "none"}, {"fixed": {3: 5, 7: 9, 8: 9}, "top_p": 0.9}):
        check_unchanged(family_model("nemotron"), prompts, {**options, **more})


class Same:
    """A model with the same logits for a column in both modes."""

    def __init__(self) -> None:
        self.model = family_model("nemotron")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        table = torch.randn(512, 128, generator=torch.Generator().manual_seed(1)).double()
        return table[plan.positions.gather(1, plan.logit_rows) + (plan.kind != "draft")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_draws_with_the_noise_of_its_step(temperature: float) -> None:
    """Two passes that agree about a distribution draw the same token from it."""
    model: Any = Same()
    options: dict[str, Any] = {"verifier": "linear:8", "at_eos": "ignore", "seed": 3}
    options |= {"max_new_tokens": 17, "cache": "block_causal", "temperature": temperature}
    out = dllm.generate(model, [[1, 2, 3], [4]], **options)
    assert [row.forwards for row in out.metrics.rows] == [1 + 2 + 2] * 2
    assert [row.accepted for row in out.metrics.rows] == [(1, 0, 0, 0, 0, 0, 0, 2)] * 2


MORE: list[dict[str, Any]] = [
    {"at_eos": at_eos} for at_eos in ("ignore", "stop", "skip", "block", "truncate")
]
MORE += [
    {"fixed": {0: 5, 1: 6, 9: 7}},
    {"min_new_tokens": 9, "forbid_eos": False},
    {"forbidden_token_ids": (6, 9), "deferred_token_ids": (13,)},
    {"blocks_from": "zero"},
    {"batch_size": 2, "seed": [5, 6, 7, 8, 9]},
    {"n": 2},
    {"cache": "block_causal:first_token=force"},
]


@pytest.mark.parametrize("more", MORE, ids=str)
def test_nothing_changes_beside_other_settings(more: dict[str, Any]) -> None:
    prompts = random_prompts(5, high=30, seed=2)
    ends = [6, 9, 13, 29, 47, 72, 113]
    options: dict[str, Any] = {"cache": "block_causal", "verifier": "linear:8,grow=4"}
    options |= {"eos_token_id": ends, "max_new_tokens": 19, "seed": 4, "temperature": 0.5, **more}
    check_unchanged(family_model("nemotron"), prompts, options)


def test_a_prompt_may_be_read_in_parts() -> None:
    prompts, options = random_prompts(4, high=30), {**GIVEN, "verifier": "linear:8"}
    whole = dllm.generate(family_model("nemotron"), prompts, **options)
    parts = {**options, "cache": "block_causal:prefill_chunk=3"}
    read = dllm.generate(family_model("nemotron"), prompts, **parts)
    assert read.sequences == whole.sequences
    longest = max(map(len, prompts))
    assert read.metrics.num_forwards - whole.metrics.num_forwards == (longest - 1) // 3
    assert read.metrics.fed[: longest // 3] == (3,) * (longest // 3)


@pytest.mark.parametrize("cached", ["none", "block_causal"])
def test_gaps_are_filled_from_the_left(cached: str) -> None:
    mask = family_model("nemotron").spec.mask_token_id
    prompts = [[3, mask, mask, 7, mask, mask, mask, 9], [5, 6, 7, 8, mask, mask]]
    options = {"cache": cached, "verifier": "linear:4", "infill": True}
    check_unchanged(family_model("nemotron"), prompts, options)
    with pytest.raises(ValueError, match="prompt 1 begins with an open slot"):
        dllm.stream(family_model("nemotron"), [[3, mask], [mask, 3]], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_a_row_does_not_depend_on_its_batch(share: float, tmp_path: Path) -> None:
    hosts: Any = hosted(FAMILIES[0], tmp_path, "float64")
    texts = [greedy(FAMILIES[0], tuple(prompt), 21) for prompt in PROMPTS]
    wrong = [tuple(t if n % 3 else 0 for n, t in enumerate(text)) for text in texts]
    options: dict[str, Any] = {**GIVEN, "verifier": "linear:8,grow=2", "at_eos": "ignore"}

    def run(rows: list[int]) -> Any:
        model: Any = Drafting(hosts, [wrong[row] for row in rows], 1.0) if share else hosts
        return dllm.generate(model, [PROMPTS[row] for row in rows], **options)

    together = run([0, 1, 2])
    for row in range(3):
        alone = run([row])
        assert alone.sequences[0] == together.sequences[row]
        assert alone.metrics.rows[0] == together.metrics.rows[row]
    again = run([2, 0])
    assert again.metrics.rows == (together.metrics.rows[2], together.metrics.rows[0])


def test_keys_of_drafts_are_never_read() -> None:
    """A store of large random values changes nothing, nor do keys that a draft has left."""
    model: Any = family_model("nemotron")
    options: dict[str, Any] = {**GIVEN, "verifier": "linear:8", "at_eos": "ignore"}
    prompts = random_prompts(3, high=20)
    plain = dllm.generate(model, prompts, **base_of(options)).sequences
    assert dllm.generate(Poisoned(model), prompts, **options).sequences == plain
    memory = dllm.PromptMemory()
    for _ in range(2):
        assert dllm.generate(model, prompts, memory=memory, **options).sequences == plain
    assert memory.reused == tuple(map(len, prompts))
    longer = [[*row, 7, 8] for row in plain]  # a turn behind the answers, whose keys are stored
    again = dllm.generate(model, longer, memory=memory, **options).sequences
    assert memory.reused == tuple(len(row) - 1 for row in plain)  # the last token was never fed
    assert again == dllm.generate(model, longer, **base_of(options)).sequences


def test_host_and_device_meet_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("nemotron")
    options: dict[str, Any] = {**GIVEN, "verifier": "linear:8,grow=4", "temperature": 0.5}
    events = iter(dllm.stream(model, random_prompts(3, high=20), seed=0, **options))
    next(events)  # tables are built once
    assert set(transfers_of(events, monkeypatch)) == {1}


class Failing(Counting):
    """Gives no number behind the token 15."""

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits = super().forward(tokens, plan, store)
        late = (tokens == 15).gather(1, plan.logit_rows) & (plan.kind != "draft")
        return logits.masked_fill(late[..., None], float("nan"))


def test_broken_logits_leave_the_same_behind() -> None:
    kept: list[Any] = []
    options: dict[str, Any] = {"verifier": "linear:8", "max_new_tokens": 8, "at_eos": "ignore"}
    for given in (base_of(options), {**options, "cache": "block_causal"}):
        model: Any = Failing({column: column + 10 for column in range(40)})
        with pytest.raises(dllm.BrokenLogitsError) as failure:
            dllm.generate(model, [[10, 11, 12]], **given)
        kept.append(failure.value.partial)
    assert kept[0].sequences == kept[1].sequences
    assert kept[1].metrics.rows[0].raw_tokens == 3  # 13, 14, 15


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"verifier": "linear:0"}, "block=0 must be at least 1"),
        ({"verifier": "linear:8,grow=9"}, "grow=9 is the first of the windows up to block=8"),
        ({"verifier": "linear:8,threshold=2"}, r"threshold=2(\.0)? must be in"),
        ({"scheduler": "fixed_quota"}, "no scheduler chooses any: leave scheduler 'fixed_quota'"),
        ({"scheduler": "threshold:0.5"}, "leave scheduler 'threshold' out"),
        ({"cache": "dual"}, "verifier 'linear' refuses cache 'dual'"),
        ({"cache": "none:beyond_block=false"}, "refuses cache 'none'.*its options left out"),
        ({"block_length": 16}, "block_length=16 and block=32 of verifier 'linear' both say"),
        ({"guidance_scale": 1.0}, "refuses guidance_scale=1.0: drafts and predictions"),
        ({"repetition_penalty": 1.2}, "refuses repetition_penalty=1.2: a token would be"),
        (
            {"logits_processors": (lambda tokens, scores: scores,)},
            "refuses logits_processors: they would",
        ),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.stream(family_model("nemotron"), [[1]], **{"verifier": "linear", **given})


@pytest.mark.parametrize("name", ["llada_gqa", "dream_gqa", "sdar", "wedlm", "e2d2", "causal"])
def test_a_model_with_one_mode_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs a model that predicts|stand behind"):
        dllm.stream(model_of(name), [[1]], verifier="linear")


def test_every_cache_runs_or_is_refused() -> None:
    model, fit = family_model("nemotron"), set()
    for name in caches.names():
        try:
            dllm.stream(model, [[1]], cache=name, verifier="linear")
        except ValueError:
            continue
        fit.add(name)
    assert fit == {"none", "block_causal"}


@pytest.mark.parametrize("seed", some(range(40), every=20))
def test_tokens_of_random_two_mode_models(seed: int) -> None:
    """Weights, prompts, windows, ends and lengths at random, and drafts that are right in part."""
    source = torch.Generator().manual_seed(seed)

    def one(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=source))]

    for _ in range(4):
        model = random_model(int(torch.randint(10**6, (), generator=source)))
        prompts = random_prompts(one(1, 2, 4), seed=seed, high=one(6, 30))
        options: dict[str, Any] = {
            "max_new_tokens": one(1, 7, 26),
            "cache": one("none", "block_causal", "block_causal:prefill_chunk=4"),
            "verifier": {"name": "linear", "block": one(4, 8, 32), "threshold": one(0.0, 0.0, 0.4)},
            "eos_token_id": one([126], [6, 9, 13, 29, 47]),
            "at_eos": one("ignore", "stop"),
        }
        options["verifier"]["grow"] = one(None, 1, 3)
        plain = dllm.generate(model, prompts, **base_of(options))
        drafting: Any = Drafting(model, list(plain.sequences), one(0.3, 0.9), seed)
        for runs in (model, drafting):
            assert dllm.generate(runs, prompts, **options).sequences == plain.sequences


def random_model(seed: int) -> dllm.HostedModel:
    """Returns a two-mode model with weights of its own."""
    model = family_model("nemotron")
    with torch.inference_mode(False):
        network, source = deepcopy(model.network), torch.Generator().manual_seed(seed)
        for weight in network.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, 0.0, 0.3, source)
    return replace(model, network=network)
