"""The tokenizer of a checkpoint: read from its folder, its chat template rendered within bounds."""

from __future__ import annotations

import ctypes
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.models.config import CheckpointError, printable
from dllm.models.loading.files import read_json

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

COMPLETE = "tokenizer.json"
BYTE_LEVEL = ("vocab.json", "merges.txt")
SETTINGS = "tokenizer_config.json"
OTHER = (SETTINGS, "tokenizer.model", *BYTE_LEVEL)
_MORE = ("special_tokens_map.json", "added_tokens.json")
TEMPLATE = "chat_template.jinja"

# Templates come with a checkpoint, as text that is run: a loop in a loop may never end.
MOST_SECONDS = 10.0
MOST_CHARACTERS = 2**24  # of a rendered chat, some millions of tokens


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of a folder, None when it has no such files; no code of it is run.

    `tokenizer.json` describes a tokenizer completely, so its class is not looked up: the classes
    that LLaDA and Dream name are remote code. Dream ships only vocab.json and merges.txt, in
    Qwen2's byte-level format.
    """
    present = {name for name in (COMPLETE, *OTHER) if (folder / name).is_file()}
    if not present:
        return None
    if COMPLETE not in present and not present.issuperset(BYTE_LEVEL):
        listed = ", ".join(name for name in OTHER if name in present)
        raise CheckpointError(
            f"{folder} has {listed} but no complete tokenizer; needed: {COMPLETE}, or "
            f"{' and '.join(BYTE_LEVEL)}"
        )
    import transformers  # start-up time: a class is imported when it is looked up

    complete = COMPLETE in present
    kind = transformers.PreTrainedTokenizerFast if complete else transformers.Qwen2Tokenizer
    try:
        for name in (COMPLETE, SETTINGS, BYTE_LEVEL[0], *_MORE):
            if (folder / name).is_file():
                read_json(folder / name)  # the libraries keep the last of two keys in silence
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"the tokenizer files in {folder} cannot be read: {error}") from error


def find_token(tokenizer: PreTrainedTokenizerBase | None, spellings: tuple[str, ...]) -> int | None:
    """Returns the id of the first spelling that the vocabulary has; never the unknown token's."""
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    return next((vocabulary[text] for text in spellings if text in vocabulary), None)


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Returns messages in the tokenizer's chat template, ready for an answer.

    `tools` are functions that may be called, for templates that write them.
    Raises ValueError, which names the template's file, for what the template refuses, and for a
    template that takes longer than `MOST_SECONDS` or writes more than `MOST_CHARACTERS`.
    """
    where = f"the chat template in {_template_file(tokenizer)}"
    _check_powers(tokenizer, where)

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=not continue_final_message,
                continue_final_message=continue_final_message,
            )
        )

    try:
        text = _within(MOST_SECONDS, render)
    except TimeoutError:
        raise ValueError(
            f"{where} was not done after {MOST_SECONDS:g} seconds: look for loops inside loops, "
            "or give plain text instead of messages"
        ) from None
    except Exception as error:  # of jinja2, or of whatever the template calls
        raise ValueError(
            printable(f"{where} cannot render these messages: {type(error).__name__}: {error}")
        ) from error
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"{where} writes {len(text)} characters, over the limit of {MOST_CHARACTERS}: give "
            "plain text instead of messages"
        )
    return text


def _template_file(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the file that a tokenizer's chat template came from, else the tokenizer's name."""
    name = str(tokenizer.name_or_path)
    for file in (Path(name) / TEMPLATE, Path(name) / SETTINGS):
        if name and file.is_file():
            return str(file)
    return name or f"this {type(tokenizer).__name__}"


def _check_powers(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuses a template that computes powers."""
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, Mapping) else [template]
    if any(_has_power(str(text)) for text in texts):
        raise ValueError(f"{where} computes powers (**), which may take for ever: leave them out")


@lru_cache
def _has_power(template: str) -> bool:
    """Whether a template has `a ** b`, one operation that may run for years without a break."""
    import jinja2  # start-up time: only chats have a template

    before = ""
    try:
        for _, kind, sign in jinja2.Environment().lex(template):
            if (kind, sign) == ("operator", "**") and before not in ("(", ","):  # there: f(**more)
                return True
            before = before if kind == "whitespace" else sign
    except jinja2.TemplateError:
        pass  # rendering says what is wrong
    return False


class _TimeIsUp(SystemExit):
    """Ends a thread: no template catches it, and threading does not report it."""


def _within(seconds: float, function: Callable[[], str]) -> str:
    """Returns what a function returns; TimeoutError if that takes longer, and the call is ended."""
    results: list[str] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except _TimeIsUp:
            return
        except Exception as error:  # noqa: BLE001 raised again by who waits
            errors.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        worker.join(seconds)
    finally:  # at Ctrl-C too
        while worker.is_alive():
            end = ctypes.pythonapi.PyThreadState_SetAsyncExc
            end(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(_TimeIsUp))
            worker.join(1.0)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def encode_text(
    tokenizer: PreTrainedTokenizerBase | None, text: str, special: bool, where: str = "the text"
) -> list[int]:
    """Returns the token ids of a text, with the tokenizer's special tokens if asked for."""
    if tokenizer is None:
        raise ValueError("the model has no tokenizer: give token ids instead of text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} has {text[error.start]!r} at position {error.start}, half of a character "
            "that has no UTF-8: read its source with errors='replace', or leave it out"
        ) from None
    return list(tokenizer.encode(text, add_special_tokens=special))


def encode_chat(
    tokenizer: PreTrainedTokenizerBase | None,
    chat: Sequence[Mapping[str, Any]],
    where: str = "the chat",
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Returns the token ids of a chat, with functions that may be called."""
    if tokenizer is None or not tokenizer.chat_template:
        raise ValueError("the model has no chat template: give plain text instead of messages")
    for message in chat:
        if not {"role", "content"} <= set(message):
            raise ValueError(f"a chat message needs 'role' and 'content', not {dict(message)!r}")
        wrong = [key for key in ("role", "content") if not isinstance(message[key], str)]
        if wrong:
            value = reprlib.repr(message[wrong[0]])
            raise ValueError(
                f"{where} has a chat message with {wrong[0]}={value}: give a text; images and "
                "videos are not read"
            )
    return encode_text(tokenizer, render_chat(tokenizer, chat, tools=tools), False, where)
