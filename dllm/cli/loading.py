"""The model of a command: which one, what is merged into it, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dllm.cli.chosen import yaml_value
from dllm.cli.ranks import end_when_lost
from dllm.cli.shown import Terminal, say
from dllm.models.loading import load
from dllm.models.loading.weights import parse_device
from dllm.models.model import HostedModel
from dllm.models.speed import AUTO
from dllm.recipes import read_recipe


def with_recipe(
    config: Mapping[str, Any], recipe: str | None, model: HostedModel, task: str | None = None
) -> Mapping[str, Any]:
    """Returns the settings of a file or of a recipe; warns of a task that the recipe is not of.

    Raises ValueError for both, and for a recipe of another model.
    """
    if recipe is None:
        return config
    if config:
        raise ValueError(f"--config and --recipe {recipe} both say all settings: give one of them")
    found = read_recipe(recipe, model)
    found.check(model)
    if task is not None and task != found.task:
        say(f"warning: --recipe {recipe} was found for the task {found.task!r}, not {task!r}")
    return found.settings


def load_model(
    model: str, dtype: str | None, place: Mapping[str, Any], speed: str = AUTO
) -> HostedModel:
    """Returns the model of a command; `place` is what `placed` returns."""
    with Reading() as reading:
        ways = None if speed == "none" else speed
        loaded = load(model, dtype=dtype, speed=ways, progress=reading, **place)
    if place.get("tensor_parallel") is not None:
        end_when_lost(loaded)
    return loaded


class Reading:
    """Shows on a terminal's stderr how much of the weights was read, where that takes long."""

    def __init__(self, patience: float = 2.0) -> None:
        self.patience = patience  # seconds
        columns = TextColumn("reading weights"), BarColumn(), DownloadColumn(binary_units=True)
        terminal = Terminal(stderr=True)
        self._bar = Progress(*columns, TimeRemainingColumn(), console=terminal, transient=True)
        self._began: float | None = None

    def __enter__(self) -> Reading:
        return self

    def __call__(self, read: int, total: int) -> None:
        """Notes the bytes that were read, of so many."""
        now = perf_counter()
        self._began = now if self._began is None else self._began
        if not self._bar.console.is_terminal or now - self._began < self.patience:
            return
        if not self._bar.tasks:
            self._bar.add_task("")
            self._bar.start()
        self._bar.update(self._bar.tasks[0].id, completed=read, total=total)

    def __exit__(self, *error: object) -> None:
        if self._bar.tasks:
            self._bar.stop()


def placed(
    device: str | None,
    device_map: str | None,
    revision: str | None,
    adapter: str | None,
    family: str | None = None,
    attention: str | None = None,
    draft_adapter: str | None = None,
) -> dict[str, Any]:
    """Returns the arguments of `load` that say which model goes where."""
    where = {"device": device, "device_map": devices(device_map)}
    source = {"revision": revision, "adapter": adapter, "draft_adapter": draft_adapter}
    return {**where, **source, "family": family, "attention": attention}


def devices(device_map: str | None) -> Any:
    """Returns a device map as `load` takes it; raises ValueError if it is none."""
    value = None if device_map is None else yaml_value(device_map, "--device-map")
    if isinstance(value, str) and value != "auto":
        try:
            return str(parse_device(value))
        except ValueError as error:
            raise ValueError(
                f'--device-map {device_map!r} must be "auto" or a mapping of modules to devices, '
                f'such as {{"": cpu}}, or one device: {error}'
            ) from None
    if value is not None and value != "auto" and not isinstance(value, Mapping):
        raise ValueError(
            f'--device-map {device_map!r} must be "auto" or a mapping of modules to devices, such '
            'as {"": cpu}'
        )
    for device in value.values() if isinstance(value, Mapping) else ():
        if not isinstance(device, int) and device != "disk":
            parse_device(device)
    return value
