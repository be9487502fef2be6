"""`dllm chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.prompt import Prompt

from dllm import PromptMemory, load
from dllm.cli import options
from dllm.cli.generate import drain, warn_unknown_words
from dllm.cli.shown import Terminal
from dllm.compatible import check
from dllm.generate import stream
from dllm.settings import resolve
from dllm.trace.text import visible


def chat(
    model: options.Model = "tiny",
    revision: options.Revision = None,
    scheduler: options.Scheduler = None,
    cache: options.Cache = None,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    temperature: options.Temperature = None,
    settings: options.Set = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    speed: options.Speed = None,
    as_json: options.Json = False,
) -> None:
    """Answers one message after the other; an empty line or Ctrl-D ends it.

    dllm chat --scheduler threshold:0.9 --cache dual
    """
    where = options.placed(device, device_map, revision)
    loaded = load(model, dtype=dtype, speed=speed, **where)
    parts = {"scheduler": scheduler, "cache": cache}
    chosen = options.collect(settings, max_new_tokens, block_length, temperature, None, **parts)
    resolved = resolve(loaded.defaults, None, chosen)
    _, policy = check(loaded, resolved)  # before anything is asked
    # It spares each turn the reading of those before it, where the cache allows that.
    memory = PromptMemory() if policy.final_blocks and not resolved.guidance_scale else None
    messages: list[dict[str, str]] = []
    while content := _read(as_json):
        messages.append({"role": "user", "content": content})
        warn_unknown_words(loaded, [content])
        running: Any = stream(loaded, messages, memory=memory, **chosen)
        drain(running, watch=sys.stdout.isatty() and not as_json)
        out = running.output
        reply = out.texts[0] if out.texts else ""
        messages.append({"role": "assistant", "content": reply})
        if as_json:
            print(json.dumps({"reply": reply, "metrics": out.metrics.to_dict()}), flush=True)
        elif not sys.stdout.isatty():
            Terminal().print(visible(reply), markup=False)


def _read(quiet: bool) -> str:
    """Returns the next message, '' at the end."""
    if quiet or not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    try:
        return Prompt.ask("[bold]you[/bold]", default="", show_default=False).strip()
    except EOFError:
        return ""
