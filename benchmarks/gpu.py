"""Everything that a GPU should be asked once: the floor of a step, and how near each way comes.

    python -m benchmarks.gpu --output gpu.json

Measures the device's bandwidth and product rate; then, for networks of the shapes of LLaDA-8B and
Dream-7B with random weights, a block step over a K/V store at several batch sizes, in every way of
`dllm.speed_up`; what the statistics of a step cost, drawn tokens or not, and what lies between a
layer's products, as PyTorch operations and as kernels; and whole generations. Takes an hour or
less; the file is written anew after each shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import dllm
from benchmarks.gpu_kernels import of_kernels
from benchmarks.gpu_table import reached, say, show
from benchmarks.machine import machine, rounds, write
from benchmarks.roofs import Roofs, measure_roofs, median_ms
from benchmarks.shapes import random_model
from dllm.kernels.statistics import has_kernel
from dllm.models.speed import parse_ways
from dllm.state.candidates import Sampling
from dllm.state.noise import CounterNoise
from dllm.state.plan import StepPlan

# Ways that join weights do so for good: they come last.
WAYS = (
    "eager",
    "compiled",
    "captured",
    "compiled+captured",
    "fused",
    "fused+captured",
    "fused+compiled+captured",
)
DRAWN = 0.7  # the temperature of what is drawn


@dataclass(frozen=True)
class Plan:
    """What is measured of each shape."""

    num_keys: int
    width: int  # columns of a block
    batch_sizes: tuple[int, ...]
    repeats: int
    ways: tuple[str, ...]

    def step(self, model: dllm.HostedModel, rows: int) -> StepPlan:
        """Returns a pass of the dual cache over the last block."""
        columns = torch.arange(self.num_keys - self.width, self.num_keys, device=model.device)
        columns = columns.expand(rows, -1)
        head = torch.arange(self.width, device=model.device).expand(rows, -1)
        return StepPlan("step", columns, head, self.num_keys, stored=columns)


def step_work(model: dllm.HostedModel, plan: Plan, rows: int) -> Callable[[], object]:
    """Returns a block step that can be timed, of which enough was run to compile or capture it."""
    step, store = plan.step(model, rows), model.new_store(rows, plan.num_keys)
    tokens = torch.randint(0, model.spec.vocab_size - 2, step.positions.shape, device=model.device)

    @torch.inference_mode()
    def run() -> object:
        return model.forward(tokens, step, store)

    for _ in range(3):
        run()
    return run


def of_statistics(model: dllm.HostedModel, plan: Plan, rows: int) -> dict[str, float]:
    """Returns the milliseconds from logits to tokens and confidences."""
    size = (rows, plan.width, model.spec.vocab_size)
    logits = torch.randn(size, device=model.device, dtype=model.dtype)
    step = torch.zeros(rows, dtype=torch.int64, device=model.device)
    columns = torch.arange(plan.width, device=model.device).expand(rows, -1)
    plain = Sampling(model.spec.mask_token_id)
    made = {"pytorch": plain, "drawn, pytorch": replace(plain, temperature=DRAWN)}
    if has_kernel(model.device):
        made |= {
            name.replace("pytorch", "kernel"): replace(s, lean=True) for name, s in made.items()
        }

    def work(sampling: Sampling) -> Callable[[], object]:
        return lambda: sampling.propose(logits, CounterNoise(step), columns, step).confidence

    taken = rounds([work(sampling) for sampling in made.values()], plan.repeats, model.device)
    return {name: median_ms(seconds) for name, seconds in zip(made, taken, strict=True)}


def of_generation(model: dllm.HostedModel, plan: Plan, rows: int) -> dict[str, float]:
    """Returns tokens a second of a block of one token a step, refresh included, and the memory.

    Of the most likely tokens and of drawn ones, in turn.
    """
    source = torch.Generator().manual_seed(0)
    size = (rows, plan.num_keys - plan.width)
    prompts = torch.randint(0, model.spec.vocab_size - 2, size, generator=source).tolist()
    options: dict[str, Any] = {"scheduler": "fixed_quota", "cache": "dual", "at_eos": "ignore"}
    options |= {"max_new_tokens": plan.width, "block_length": plan.width}
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    works = [
        partial(dllm.generate, model, prompts, **options),
        partial(dllm.generate, model, prompts, temperature=DRAWN, seed=0, **options),
    ]
    taken = rounds(works, max(plan.repeats // 5, 2), model.device)
    peak = torch.cuda.max_memory_allocated(model.device) if on_gpu else 0
    plain, drawn = (1e3 * rows * plan.width / median_ms(seconds) for seconds in taken)
    return {"tokens_per_second": plain, "drawn_tokens_per_second": drawn, "peak_bytes": peak}


def of_way(model: dllm.HostedModel, plan: Plan, rows: int) -> dict[str, Any]:
    """Returns what one way costs at one batch size."""
    try:
        work = step_work(model, plan, rows)
        (taken,) = rounds([work], plan.repeats, model.device)
        del work  # and its K/V store with it
        whole = of_generation(model, plan, rows)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).split("\n")[0]}
    return {"ms": median_ms(taken), **whole, "ran_eager": getattr(model.runner, "failed", None)}


def of_shape(model: dllm.HostedModel, plan: Plan, roofs: Roofs) -> list[dict[str, Any]]:
    """Returns a line for each batch size, one way after the other, so that none holds memory."""
    lines: list[dict[str, Any]] = []
    for rows in plan.batch_sizes:
        floor = roofs.floor(model, plan.step(model, rows))
        spent = of_statistics(model, plan, rows)
        between = of_kernels(model, plan.step(model, rows), plan.repeats)
        line = {"batch": rows, "floor": floor, "statistics_ms": spent, "between_ms": between}
        lines.append(line | {"ways": {}})
    for name in plan.ways:
        faster = model if name == "eager" else dllm.speed_up(model, *parse_ways(name))
        for one in lines:
            one["ways"][name] = of_way(faster, plan, one["batch"])
            say(model.name, name, one)
        del faster
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
    return lines


def main(
    shape: Annotated[list[str] | None, typer.Option(help="Of benchmarks/shapes.py.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; 1 to 32.")] = None,
    way: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(WAYS)}.")] = None,
    num_keys: Annotated[int, typer.Option(help="Columns that a step attends to.")] = 512,
    width: Annotated[int, typer.Option(help="Columns of the block.")] = 32,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 20,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cuda, cpu.")] = "cuda",
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Measures a GPU, and steps and generations on it."""
    if not 0 < width < num_keys:
        raise typer.BadParameter(f"--width {width} must be from 1 to {num_keys - 1} (--num-keys)")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter(
            "no GPU is here; --device cpu --shape tiny tries the benchmark out"
        )
    unknown = [name for name in way or () if name not in WAYS]
    if unknown:
        raise typer.BadParameter(f"--way {unknown[0]}: known are {', '.join(WAYS)}")
    if output is not None:  # what cannot be written is better known before an hour of measuring
        write({}, output)
    where, kind = torch.device(device), getattr(torch, dtype)
    roofs = measure_roofs(where, kind, repeats)
    ways = tuple(w for w in way or WAYS if device.startswith("cuda") or "captured" not in w)
    plan = Plan(num_keys, width, tuple(batch or (1, 2, 4, 8, 16, 32)), repeats, ways)
    sizes = {"num_keys": num_keys, "width": width, "dtype": dtype, "roofs": roofs.record()}
    found: list[dict[str, Any]] = []
    for name in shape or ("llada-8b", "dream-7b"):
        lines = of_shape(random_model(name, kind, where), plan, roofs)
        show(name, lines)
        found.append({"shape": name, "steps": lines, "goals": reached(lines)})
        if output is not None:
            write({"machine": machine(device), **sizes, "shapes": found}, output)
    if output is None:
        write({"machine": machine(device), **sizes, "shapes": found}, None)


if __name__ == "__main__":
    typer.run(main)
