"""Trains a context filter on what the model proposes while a teacher lets only right tokens pass.

The canvases that a filter will meet are those that it makes itself. So the first round decodes by
confidence, and each further one by the filter of the rounds before (DAgger, arXiv 1011.0686), at
thresholds drawn for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.generate import stream
from dllm.learn2pd.context import ContextNetwork, Reading
from dllm.models.model import HostedModel
from dllm.options import Count, Options, Range, Seed
from dllm.schedulers import Decision, Needs, Scheduler, View
from dllm.schedulers.context_filter import read
from dllm.settings import Settings
from dllm.state.candidates import Candidates, best

FEWEST_PROMPTS = 10  # one of them for the test
REPORT_EVERY = 50  # steps
_BATCH = 64  # canvases of a training step
_ENDS = 3  # of the columns behind an answer, the first are learnt from: they are all alike

Rate = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True)
class Recipe(Options):
    """The hyper-parameters."""

    rounds: Count = 2  # of decoding and training
    steps: Count = 6000  # of the last training; those before have a quarter
    learning_rate: Rate = 4e-3  # at its highest; one cycle
    seed: Seed = 0


@dataclass(frozen=True)
class Lesson:
    """N canvases as the filter reads them, and which of their proposals were right."""

    reading: Reading  # (N, S) each
    right: Tensor  # (N, S) bool
    counted: Tensor  # (N, S) bool: open, and not far behind the answer
    prompt: Tensor  # (N,) int64

    def at(self, index: Tensor) -> Lesson:
        """Returns some canvases, by (n,) int64 or (N,) bool."""
        chosen = (self.right[index], self.counted[index], self.prompt[index])
        return Lesson(self.reading.at(index), *chosen)

    def of_round(self, number: int, count: int) -> Lesson:
        """Returns the lesson with its prompts numbered as those of part `number` of `count`."""
        return replace(self, prompt=self.prompt * count + number)


def join(parts: Sequence[Lesson]) -> Lesson:
    """Returns all canvases of one or more lessons of equally many slots, on the CPU."""
    names = [one.name for one in fields(Reading)]
    readings = (torch.cat([getattr(p.reading, name).cpu() for p in parts]) for name in names)
    others = ("right", "counted", "prompt")
    rest = (torch.cat([getattr(p, name).cpu() for p in parts]) for name in others)
    return Lesson(Reading(*readings), *rest)


@dataclass(frozen=True, eq=False)
class Teacher(Scheduler):
    """Commits what passes drawn thresholds and is right; else the surest that is right.

    Rows so stay on the way to their reference, which is what their proposals are compared with.
    """

    # Of each prompt: tokens by slot, (N, S) int64, and (N, 3) float32: threshold near the first
    # mask and far from it, columns of "near".
    reference: Tensor
    limits: Tensor
    network: ContextNetwork | None  # None: by confidence
    note: Callable[[Lesson], None]  # is told what each pass shows

    source: ClassVar[str] = "ours"
    constant_needs = Needs(whole_row=True)

    def select(self, candidates: Candidates, view: View) -> Decision:
        slots = self.reference.shape[1]
        slot = view.offset.clamp(0, slots - 1)
        reference = self.reference[view.prompts].gather(1, slot)
        right = candidates.token == reference
        self.note(self._lesson(candidates, view, right))
        masked = view.masked & view.block
        sure = candidates.confidence
        if self.network is not None:
            network = self.network.on(view.columns.device)
            sure = network(read(candidates, view)).sigmoid()
        near, far, reach = self.limits[view.prompts, :, None].unbind(1)
        first = masked.int().argmax(1, keepdim=True)
        column = torch.arange(masked.shape[1], device=masked.device)
        passed = sure >= torch.where(column - first < reach, near, far)
        kept = passed & right & masked
        # Without a right proposal the surest column is written, with its right token.
        surest = best(candidates.confidence + 2 * right, masked)
        waits = ~kept.any(1, keepdim=True)
        return Decision(kept | (waits & surest), tokens=reference)

    def _lesson(self, candidates: Candidates, view: View, right: Tensor) -> Lesson:
        """Returns the slots of the rows that are still decoded."""
        slots = self.reference.shape[1]
        index = (view.offset >= 0).int().argmax(1, keepdim=True)
        index = index + torch.arange(slots, device=index.device)
        reading = read(candidates.at(index), view.at(index))
        ends = view.is_end(reading.shown) & reading.inside
        counted = reading.open & (ends.int().cumsum(1) <= _ENDS)
        going = (view.masked & view.block).any(1)
        return Lesson(reading, right.gather(1, index), counted, view.prompts).at(going)


@dataclass(frozen=True)
class Course:
    """A model, the prompts that it answers, and the right answers."""

    model: HostedModel
    prompts: Sequence[Any]  # texts or chats
    references: Sequence[Sequence[int]]  # tokens, an end token after each answer that has one
    settings: Settings
    batch_size: Count = 64

    def part(self, number: int, count: int) -> Course:
        """Returns part `number`, from 0, of `count` that share the prompts."""
        chosen = slice(number, None, count)
        return replace(self, prompts=self.prompts[chosen], references=self.references[chosen])

    def lessons(
        self, network: ContextNetwork | None, generator: torch.Generator
    ) -> Iterator[Lesson]:
        """Yields what a decoding of all prompts shows, batch by batch, on the CPU."""
        for start in range(0, len(self.prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            reference = self._reference(part)
            passes: list[Lesson] = []
            limits = self._limits(len(reference), network, generator)
            teacher = Teacher(reference, limits, network, passes.append)
            settings = replace(self.settings, scheduler=teacher, batch_size=len(reference))
            for _ in stream(self.model, list(self.prompts[part]), settings):
                pass
            seen = join(passes)
            yield Lesson(seen.reading, seen.right, seen.counted, seen.prompt + start)

    def _reference(self, part: slice) -> Tensor:
        """Returns references (B, S), filled with end tokens."""
        slots, ends = self.settings.max_new_tokens, self.model.spec.eos_token_ids
        fill = ends[0] if ends else self.model.spec.mask_token_id
        rows = [[*tokens[:slots], *[fill] * slots][:slots] for tokens in self.references[part]]
        return torch.tensor(rows, device=self.model.device)

    def _limits(
        self, count: int, network: ContextNetwork | None, generator: torch.Generator
    ) -> Tensor:
        """Draws thresholds: a filter's probabilities are nearer to 0 and 1 than confidences."""
        first, second, third = torch.rand(3, count, generator=generator)
        if network is None:
            near = 0.7 + 0.29 * first
            far = 1 - (1 - near) * 0.7 * second
        else:
            near = 1 - 10 ** (-0.8 - 1.5 * first)
            far = 1 - (1 - near) * 1.5 * 10**-second
        reach = torch.tensor([4.0, 8.0, 16.0, 64.0])[(third * 4).long()]
        return torch.stack([near, far, reach], 1).to(self.model.device)


def split(lesson: Lesson, count: int, seed: int) -> tuple[Lesson, Lesson]:
    """Returns the canvases of nine tenths of `count` prompts, and of the others, for the test."""
    if count < FEWEST_PROMPTS:
        raise ValueError(f"{count} prompts are too few: at least {FEWEST_PROMPTS} are needed")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = torch.isin(lesson.prompt, order[: count // 10])
    return lesson.at(~held), lesson.at(held)


def loss_of(logits: Tensor, lesson: Lesson) -> Tensor:
    """Returns the mean binary cross-entropy of the counted columns, in nats."""
    nats = F.binary_cross_entropy_with_logits(logits, lesson.right.float(), reduction="none")
    return (nats * lesson.counted).sum() / lesson.counted.sum().clamp(min=1)


def train(
    lesson: Lesson, vocab_size: int, recipe: Recipe, steps: int, report: Callable[[int], None]
) -> ContextNetwork:
    """Returns a trained network and reports steps on the way.

    Raises ValueError if the loss is not finite.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = ContextNetwork(vocab_size)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps)
    for step in range(1, steps + 1):
        batch = lesson.at(torch.randint(len(lesson.prompt), (_BATCH,), generator=generator))
        loss = loss_of(network(batch.reading), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % REPORT_EVERY == 0 or step == steps:
            if not loss.isfinite():
                raise ValueError(
                    f"the loss is {float(loss.detach())} after step {step}: train with a lower "
                    f"rate than lr={recipe.learning_rate}"
                )
            report(step)
    return network.requires_grad_(False)


@torch.no_grad()
def score(network: ContextNetwork, lesson: Lesson, threshold: float) -> dict[str, float]:
    """Returns how well a filter judges, beside confidence: nats, and shares at a threshold."""
    parts = torch.arange(len(lesson.prompt)).split(512)
    logits = torch.cat([network(lesson.reading.at(part)) for part in parts])
    confidence = torch.logit(lesson.reading.confidence, 1e-6)
    accepted = (logits.sigmoid() >= threshold) & lesson.counted
    wrong = (accepted & ~lesson.right).sum() / accepted.sum().clamp(min=1)
    return {
        "test_loss": round(float(loss_of(logits, lesson)), 5),
        "test_loss_of_confidence": round(float(loss_of(confidence, lesson)), 5),
        "test_accepted": round(float(accepted.sum() / lesson.counted.sum().clamp(min=1)), 5),
        "test_false_accepts": round(float(wrong), 6),
    }
