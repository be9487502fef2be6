"""The ways that are taken without being asked for: those that pay on a machine and change no token.

A table of rules over what is known of the machine and of the model, so that the answer is the same
each time. What is tried out, by a short product, is only whether a way is faster: with it and
without it the tokens are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch.nn import functional as F

from dllm.models.config import printable
from dllm.models.memory import readable
from dllm.models.speed.linear import is_narrow
from dllm.models.speed.machine import Machine
from dllm.models.speed.packed import PackedLinear
from dllm.models.transformer import Transformer

_LOG = logging.getLogger(__name__)

SMALL = (
    2**24
)  # parameters: below, what lies between the products takes the time, and loading is all
PAYS = 1.05  # times as fast, in a trial, as what takes no further memory
_ROWS, _REPEATS = 32, 7  # of a trial: the columns of a block, and how often it is run
_WIDEST = 2**24  # numbers of a trial's weight


@dataclass(frozen=True)
class Subject:
    """A model as far as it decides."""

    num_parameters: int
    weight_bytes: int
    dtype: torch.dtype
    widths: tuple[int, int]  # inputs and outputs of its widest product in a layer
    spread: bool = False  # over several devices
    two_stacks: bool = False
    has_experts: bool = False
    rounded: bool = False  # its layers


@dataclass(frozen=True)
class Choice:
    """What was decided of each way, and why."""

    taken: dict[str, str]  # way -> reason
    left: dict[str, str]

    @property
    def ways(self) -> str:
        """The ways as `speed=` takes them; "plain" where there are none."""
        return "+".join(self.taken) or "plain"

    @property
    def text(self) -> str:
        """All of it in one line."""
        reasons = self.taken or self.left
        return f"{self.ways} ({'; '.join(f'{way}: {why}' for way, why in reasons.items())})"


Trial = Callable[[Subject], float]  # returns how many times as fast packed products are


def choose(machine: Machine, subject: Subject, trial: Trial) -> Choice:
    """Returns the ways for a model on a machine."""
    whole = _whole(machine, subject)
    if whole:
        return Choice({}, {"all": whole})
    taken, left = {"fused": "fewer products, no memory"}, {}
    left["int8"] = left["int4"] = left["fp8"] = "rounds weights, which is for you to ask"
    left["kv_int8"] = "rounds keys and values, which is for you to ask"
    left["compiled"] = "10 s and more at the first passes, and other roundings in 16 bits" + (
        "" if machine.compiler else "; no compiler was found"
    )
    if machine.device == "cuda":
        left["packed"] = left["widened"] = "for a CPU"
        if subject.two_stacks:
            left["captured"] = "an encoder and a decoder are not captured"
        else:
            taken["captured"] = "one launch a step; keeps the K/V store of the last generation"
        return Choice(taken, left)
    left["captured"] = "for CUDA"
    _on_a_cpu(machine, subject, trial, Choice(taken, left))
    return Choice(taken, left)


def _on_a_cpu(machine: Machine, subject: Subject, trial: Trial, choice: Choice) -> None:
    """Adds how weights are kept for the products of a CPU."""
    taken, left = choice.taken, choice.left
    if subject.rounded:
        left["packed"] = left["widened"] = "its layers are rounded"
        return
    name = str(subject.dtype).removeprefix("torch.")
    if subject.dtype in machine.emulates:
        others = ", those of experts aside" if subject.has_experts else ""
        taken["widened"] = (
            f"this CPU has no {name} arithmetic, so products are computed in float32 and rounded "
            f"once{others}; dtype='float32' rounds nowhere and takes twice the memory"
        )
        left["packed"] = f"no {name} arithmetic"
        return
    left["widened"] = f"{name} needs none here"
    why = _no_packing(machine, subject)
    ratio = 0.0 if why else trial(subject)
    if ratio >= PAYS:
        taken["packed"] = f"products {ratio:.2f} times as fast in a trial, for the weights twice"
    else:
        left["packed"] = why or f"products only {ratio:.2f} times as fast in a trial"


def _whole(machine: Machine, subject: Subject) -> str:
    """Returns why a model stays as it is, "" where something may pay."""
    if subject.num_parameters < SMALL:
        return f"{subject.num_parameters:,} parameters are too few for anything to pay"
    if subject.spread:
        return "it is spread over devices"
    if machine.device not in ("cpu", "cuda"):
        return f"nothing was measured on {machine.device}"
    return ""


def _no_packing(machine: Machine, subject: Subject) -> str:
    """Returns why weights are not laid out once more, "" where a trial may decide."""
    if subject.dtype not in machine.packs:
        return f"torch has no such products of {subject.dtype} here"
    if subject.has_experts:
        return "experts, which are most of the weights, are no linear layers"
    if machine.memory is None:
        return "takes the weights twice, and the free memory is not known"
    if 2 * subject.weight_bytes > machine.memory // 2:
        taken, free = readable(2 * subject.weight_bytes), readable(machine.memory)
        return f"{taken} for the weights twice would be more than half of {free} free"
    return ""


def subject_of(network: Transformer, dtype: torch.dtype, num_devices: int) -> Subject:
    """Returns what decides of a network, which may have no memory yet."""
    config = network.config
    count = sum(weight.numel() for weight in network.parameters())
    return Subject(
        num_parameters=count,
        weight_bytes=sum(
            weight.numel() * (dtype if weight.is_floating_point() else weight.dtype).itemsize
            for weight in network.parameters()
        ),
        dtype=dtype,
        widths=(config.hidden_size, max(config.intermediate_size, config.hidden_size)),
        spread=num_devices > 1,
        two_stacks=config.decoder is not None,
        has_experts=config.experts is not None,
        rounded=is_narrow(network),
    )


@torch.inference_mode()
def try_packed(subject: Subject) -> float:
    """Returns how many times as fast a packed product is, of a block's columns."""
    num_inputs, num_outputs = subject.widths
    num_outputs = max(min(num_outputs, _WIDEST // num_inputs), 1)
    linear = torch.nn.Linear(num_inputs, num_outputs, bias=False, device="meta")
    weight = torch.full((num_outputs, num_inputs), 0.5, dtype=subject.dtype, device="cpu")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    x = torch.full((_ROWS, num_inputs), 0.5, dtype=subject.dtype, device="cpu")
    packed = PackedLinear.of(linear)
    usual, quick = [], []
    for _ in range(_REPEATS):  # in turns, as others use the machine too
        usual.append(_seconds(lambda: F.linear(x, weight)))
        quick.append(_seconds(lambda: packed(x)))
    return min(usual[1:]) / min(quick[1:])


def _seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def report(name: str, choice: Choice) -> None:
    """Logs a choice; as a warning where numbers are not those of the usual products."""
    level = logging.WARNING if "widened" in choice.taken else logging.INFO
    _LOG.log(level, "%s", printable(f"{name!r}: speed='auto' takes {choice.text}"))
