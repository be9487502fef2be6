"""`dllm chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.prompt import Prompt

from dllm import HostedModel, PromptMemory, load
from dllm.cli import options
from dllm.cli.generate import draw, warn_unknown_words
from dllm.compatible import check
from dllm.generate import stream
from dllm.settings import resolve


def chat(
    model: options.Model = "tiny",
    scheduler: options.Scheduler = None,
    cache: options.Cache = None,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    temperature: options.Temperature = None,
    settings: options.Set = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    speed: options.Speed = None,
    as_json: options.Json = False,
) -> None:
    """Answers one message after the other; an empty line or Ctrl-D ends it.

    dllm chat --scheduler threshold:0.9 --cache dual
    """
    loaded = load(model, dtype=dtype, device=device, speed=speed)
    chosen = options.collect(
        settings,
        scheduler=scheduler,
        cache=cache,
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        temperature=temperature,
    )
    memory = _memory(loaded, chosen)
    messages: list[dict[str, str]] = []
    while content := _read(as_json):
        messages.append({"role": "user", "content": content})
        warn_unknown_words(loaded, [content])
        running: Any = stream(loaded, messages, memory=memory, **chosen)
        if as_json or not sys.stdout.isatty():
            for _ in running:
                pass
        else:
            draw(running)
        out = running.output
        reply = out.texts[0] if out.texts else ""
        messages.append({"role": "assistant", "content": reply})
        if as_json:
            print(json.dumps({"reply": reply, "metrics": out.metrics.to_dict()}), flush=True)
        elif not sys.stdout.isatty():
            Console().print(reply, markup=False, highlight=False)


def _memory(model: HostedModel, chosen: dict[str, Any]) -> PromptMemory | None:
    """Returns what spares each turn the reading of those before it, where the cache allows it.

    Raises ValueError for settings that do not suit the model, before anything is asked.
    """
    settings = resolve(model.defaults, None, chosen)
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
