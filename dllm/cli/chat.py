"""`dllm chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

from rich.prompt import Prompt
from typer import Option

from dllm import PromptMemory
from dllm.cli import constrained, options
from dllm.cli.chosen import collect, constraint_of, over, read_config
from dllm.cli.generate import drain, warn_unknown_words
from dllm.cli.loading import load_model, placed
from dllm.cli.shown import Terminal, say
from dllm.compatible import check
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.generate import stream
from dllm.models.model import DenoisingModel
from dllm.registry import nearest
from dllm.trace.text import visible

COMMANDS = {
    "set name=value": "changes a setting, such as temperature=0.5; /set alone shows them",
    "reset": "forgets the messages so far",
    "help": "lists this",
    "quit": "ends the conversation",
}


def chat(
    model: options.Model = "tiny",
    revision: options.Revision = None,
    scheduler: options.Scheduler = None,
    cache: options.Cache = None,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    temperature: options.Temperature = None,
    regex: constrained.Pattern = None,
    json_schema: constrained.Schema = None,
    grammar: constrained.Grammar = None,
    grammar_method: constrained.Method = None,
    choice: constrained.Choices = None,
    joint: constrained.Joint = None,
    settings: options.Set = None,
    config: options.Config = None,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    speed: options.Speed = "auto",
    family: options.Family = None,
    attention: options.Attention = None,
    system: Annotated[
        str | None, Option(help="What the model is told beforehand.", show_default="nothing")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Answers one message after the other.

    Ctrl-C ends an answer; a second one, Ctrl-D or /quit ends the conversation. /help lists what
    else may be typed.

    dllm chat --scheduler threshold:0.9 --cache dual
    """
    named = read_config(config)
    held = constraint_of(regex, json_schema, grammar, choice, joint, grammar_method)
    place = placed(device, device_map, revision, adapter, family, attention)
    loaded = load_model(model, dtype, place, speed)
    parts = {"scheduler": scheduler, "cache": cache, **held}
    chosen = collect(settings, max_new_tokens, block_length, temperature, None, **parts)
    # What is wrong is said before asking.
    conversation = Conversation(loaded, chosen, system, named)
    watched = sys.stdin.isatty() and not as_json
    if watched:
        say(f"{loaded.name}; /help lists commands, Ctrl-D ends")
    while (line := _read(watched)) is not None:
        content = line.strip()
        try:
            if content.startswith("/"):
                if not conversation.obey(content):
                    return
            elif content:
                conversation.answer(content, as_json)
        except (ValueError, TypeError, BrokenLogitsError, NotEnoughMemoryError) as error:
            if not watched:
                raise
            say(f"error: {error}")


class Conversation:
    """The messages so far, and the settings of the next answer."""

    def __init__(
        self,
        model: DenoisingModel,
        chosen: dict[str, Any],
        system: str | None,
        named: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.system = model, system
        self.named = named or {}  # settings of a file
        self.reset()
        self.choose(chosen)

    def reset(self) -> None:
        """Forgets all messages but the first instruction."""
        self.messages: list[dict[str, str]] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})

    def choose(self, chosen: dict[str, Any]) -> None:
        """Sets all settings; wrong ones change nothing, and raise ValueError or TypeError."""
        resolved = over(self.named, chosen, self.model.defaults)
        _, policy = check(self.model, resolved)
        if resolved.n != 1:
            raise ValueError(f"n={resolved.n}: a message has one answer here: leave n out")
        self.chosen, self.settings = chosen, resolved
        # It spares each turn the reading of those before it, where the cache allows that.
        keeps = policy.final_blocks and not resolved.guidance_scale
        self.memory = PromptMemory() if keeps else None

    def answer(self, content: str, as_json: bool) -> None:
        """Prints an answer; the turn is forgotten if it comes to nothing, by Ctrl-C or an error."""
        asked = [*self.messages, {"role": "user", "content": content}]
        warn_unknown_words(self.model, [content])
        running = stream(self.model, asked, settings=self.settings, memory=self.memory)
        try:
            drain(running, watch=sys.stdout.isatty() and not as_json)
        except KeyboardInterrupt:
            say("stopped; this turn is forgotten, and a second Ctrl-C ends the conversation")
            return
        out = running.output
        reply = out.texts[0] if out.texts else ""
        self.messages = [*asked, {"role": "assistant", "content": reply}]
        if as_json:
            print(json.dumps({"reply": reply, "metrics": out.metrics.to_dict()}), flush=True)
        elif not sys.stdout.isatty():
            Terminal().print(visible(reply), markup=False, soft_wrap=True)

    def obey(self, line: str) -> bool:
        """Carries out a command; False if it ends the conversation."""
        name, _, rest = line[1:].partition(" ")
        if name == "quit":
            return False
        if name == "reset":
            self.reset()
            say("forgotten: the next message is the first one")
        elif name == "help":
            for known, text in COMMANDS.items():
                say(f"/{known:<16} {text}")
        elif name == "set":
            self._set(rest.strip())
        else:
            names = [known.partition(" ")[0] for known in COMMANDS]
            say(f"unknown command {line!r}: {nearest(name, names)}")
        return True

    def _set(self, text: str) -> None:
        if text:
            name = text.partition("=")[0].strip()
            others = {key: value for key, value in self.chosen.items() if key != name}
            self.choose({**others, **collect([text])})
        listed = (f"{name}={value}" for name, value in {**self.named, **self.chosen}.items())
        say(", ".join(listed) or "all settings are at their defaults")


def _read(watched: bool) -> str | None:
    """Returns the next line; None at the end."""
    if not watched:
        return sys.stdin.readline() or None
    console = Terminal(stderr=not sys.stdout.isatty())
    try:
        return Prompt.ask("[bold]you[/bold]", console=console, default="", show_default=False)
    except EOFError:
        return None
