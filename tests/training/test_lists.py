"""The training that adds lists to a finished network: what it learns from, and what it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dllm
from dllm.training.tiny import LISTS, Forward, Recipe, Run, loss_of, new_network
from dllm.training.tiny_corpus import Batch, Corpus, Mixture, build_tokenizer

MIXED = Mixture(drills=0.2, focus=0.2, families=(1, 2, 1))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Corpus(build_tokenizer(), 0).batches(0, MIXED)[0]


def forward(seed: int) -> Forward:
    network = new_network(len(build_tokenizer()), seed)
    return lambda *seen: network.logits(network.hidden(*seen))


@pytest.mark.parametrize("taught", [False, True])
def test_the_loss_is_that_of_each_masked_token(batch: Batch, taught: bool) -> None:
    learner, teacher = forward(1), forward(2)
    columns = torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        mine = learner(batch.tokens, columns, batch.attend).float().log_softmax(-1)
        theirs = teacher(batch.tokens, columns, batch.attend).float().softmax(-1)
    total = 0.0
    for row, column in (batch.weight > 0).nonzero().tolist():
        if taught and not batch.is_list[row]:
            nats = -float((theirs[row, column] * mine[row, column]).sum())
        else:
            nats = -float(mine[row, column, batch.targets[row, column]])
        total += nats * float(batch.weight[row, column])
    loss = loss_of(learner, batch, teacher if taught else None)
    assert float(loss.detach()) == pytest.approx(total / float(batch.weight.sum()), rel=1e-4)


def test_a_network_that_is_its_teacher_has_nothing_to_learn_but_lists(batch: Batch) -> None:
    network = new_network(len(build_tokenizer()), 1)

    def logits(tokens: torch.Tensor, columns: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        return network.logits(network.hidden(tokens, columns, attend))

    def steepest(listed: bool) -> float:
        rows = batch.is_list == listed
        part = Batch(**{name: value[rows] for name, value in vars(batch).items()})
        network.zero_grad()
        loss_of(logits, part, logits).backward()
        return max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)

    assert steepest(listed=False) < 1e-2 * steepest(listed=True)


def test_a_run_begins_with_the_weights_and_goes_on_with_its_own(tmp_path: Path) -> None:
    tiny = dllm.load("tiny", speed=None).network

    def begun() -> Run:
        run = Run(tmp_path, Recipe(steps=4, families=LISTS.families), "cpu", compiled=False)
        run.begin_with(tiny)
        return run

    run = begun()
    known = {name: weight.clone() for name, weight in tiny.state_dict().items()}
    assert all(torch.equal(w, known[n]) for n, w in run.network.state_dict().items())
    run.train()
    assert (tmp_path / "model.safetensors").exists()
    assert all(torch.equal(w, known[n]) for n, w in tiny.state_dict().items())  # the teacher stays
    again = begun()
    assert again.step == 4
    with pytest.raises(ValueError, match=r"another recipe.*another --output"):
        Run(tmp_path, Recipe(steps=4), "cpu", compiled=False)
    assert begun().step == 4  # and what it was begun with is still told
    mine = run.network.state_dict()
    assert all(torch.equal(w, mine[n]) for n, w in again.network.state_dict().items())
