"""`dllm chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.prompt import Prompt

from dllm import HostedModel, PromptMemory, load
from dllm.cli.generate import warn_unknown_words
from dllm.cli.options import (
    BlockOption,
    CacheOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    NewTokensOption,
    SchedulerOption,
    SetOption,
    SpeedOption,
    TemperatureOption,
    given,
)
from dllm.cli.watch import watch
from dllm.compatible import check
from dllm.generate import stream
from dllm.settings import resolve


def chat(
    model: ModelOption = "tiny",
    scheduler: SchedulerOption = None,
    cache: CacheOption = None,
    max_new_tokens: NewTokensOption = None,
    block_length: BlockOption = None,
    temperature: TemperatureOption = None,
    settings: SetOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    speed: SpeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answers one message after the other; an empty line or Ctrl-D ends it.

    dllm chat --scheduler threshold:0.9 --cache dual
    """
    loaded = load(model, dtype=dtype, device=device, speed=speed)
    options = given(
        settings,
        scheduler=scheduler,
        cache=cache,
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        temperature=temperature,
    )
    memory = _memory(loaded, options)
    messages: list[dict[str, str]] = []
    while content := _read(as_json):
        messages.append({"role": "user", "content": content})
        warn_unknown_words(loaded, [content])
        running: Any = stream(loaded, messages, memory=memory, **options)
        if as_json or not sys.stdout.isatty():
            for _ in running:
                pass
        else:
            watch(running)
        out = running.output
        reply = out.texts[0] if out.texts else ""
        messages.append({"role": "assistant", "content": reply})
        if as_json:
            print(json.dumps({"reply": reply, "metrics": out.metrics.to_dict()}), flush=True)
        elif not sys.stdout.isatty():
            Console().print(reply, markup=False, highlight=False)


def _memory(model: HostedModel, options: dict[str, Any]) -> PromptMemory | None:
    """Returns what spares each turn the reading of those before it, where the cache allows it.

    Raises ValueError for settings that do not suit the model, before anything is asked.
    """
    settings = resolve(model.defaults, None, options)
    _, cache = check(model, settings)
    kept = cache.final_blocks and not settings.guidance_scale
    return PromptMemory() if kept else None


def _read(quiet: bool) -> str:
    """Returns the next message, '' at the end."""
    if quiet or not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    try:
        return Prompt.ask("[bold]you[/bold]", default="", show_default=False).strip()
    except EOFError:
        return ""
