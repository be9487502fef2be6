"""Chat templates, which come with a checkpoint and run: within bounds, errors with their file."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import dllm
from dllm.models.loading import tokenizer as module
from dllm.models.loading.folder import EMBEDDED
from dllm.models.loading.tokenizer import read_tokenizer, render_chat

CHAT = [{"role": "user", "content": "hello"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "tiny"
    shutil.copytree(EMBEDDED, copied)
    return copied


def with_template(folder: Path, template: str) -> PreTrainedTokenizerBase:
    (folder / "chat_template.jinja").write_text(template)
    found = read_tokenizer(folder)
    assert found is not None
    return found


def test_a_chat_is_rendered_as_transformers_does(tiny: dllm.HostedModel) -> None:
    known = tiny.tokenizer
    assert known is not None
    for ends in (True, False):
        expected = known.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=not ends, continue_final_message=ends
        )
        assert render_chat(known, CHAT, continue_final_message=ends) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 9 ** 9 ** 9 }}", r"computes powers \(\*\*\)"),
        ("{{ raise_exception('\x1b[2J') }}", r"TemplateError: \\x1b\[2J"),
    ],
)
def test_what_a_template_refuses_names_its_file(folder: Path, template: str, message: str) -> None:
    known = with_template(folder, template)
    with pytest.raises(ValueError, match=message) as caught:
        render_chat(known, CHAT)
    assert str(folder / "chat_template.jinja") in str(caught.value)
    model: Any = dllm.load(folder)
    with pytest.raises(ValueError, match=message):
        dllm.generate(model, CHAT)


def test_loops_in_loops_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"not done after 0.3 seconds: look for loops"):
        render_chat(with_template(folder, ENDLESS), CHAT)
    assert time.monotonic() - start < 60, "of itself it would take hours"


def test_a_thread_that_was_ended_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(module, "MOST_SECONDS", 0.1)
    before = threading.active_count()
    with pytest.raises(ValueError, match="not done"):
        render_chat(with_template(folder, ENDLESS), CHAT)
    assert threading.active_count() == before


def test_a_text_that_is_too_long(folder: Path) -> None:
    known = with_template(folder, "{% for i in range(18) %}{{ 'x' * 1000000 }}{% endfor %}")
    with pytest.raises(ValueError, match="writes 18000000 characters, over the limit"):
        render_chat(known, CHAT)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_keys_that_stand_twice(folder: Path, name: str) -> None:
    text = (folder / name).read_text()
    first = next(iter(json.loads(text)))
    (folder / name).write_text(text.replace("{", f'{{"{first}": 0, ', 1))
    with pytest.raises(dllm.models.CheckpointError, match=rf"{name}.*'{first}' stands twice"):
        dllm.load(folder)


def test_stars_that_are_no_power(folder: Path) -> None:
    template = "**bold** {% macro m() %}{{ kwargs.a }}{% endmacro %}{{ m( **{'a': 2 * 3}) }}"
    assert render_chat(with_template(folder, template), CHAT) == "**bold** 6"
