"""The page at /: a chat that shows how the canvas of an answer fills."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from dllm import cache, schedulers
from dllm.compatible import check
from dllm.eval.run.describe import short
from dllm.serve.service import Service
from dllm.settings import resolve

_FOLDER = Path(__file__).parent


def page(service: Service) -> tuple[str, str]:
    """Returns the page, and the policy that lets a browser run nothing but it."""
    css, js = (_asset(name) for name in ("page.css", "page.js"))
    title = escape(f"{service.name} · dllm")
    # No text of a script ends it.
    state = json.dumps(_state(service)).replace("<", "\\u003c")
    made = Template(_asset("page.html")).substitute(title=title, css=css, js=js, state=state)
    allowed = ("default-src 'none'", f"script-src {_hash(js)}", f"style-src {_hash(css)}")
    more = ("img-src data:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'")
    return made, "; ".join([*allowed, *more, "frame-ancestors 'none'"])


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Returns how a policy names a script or a style by what it is."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _state(service: Service) -> dict[str, Any]:
    """Returns what the page begins with."""
    settings = resolve(service.model.defaults, service.settings, {})
    scheduler, policy = check(service.model, settings)
    return {
        "model": service.name,
        "schedulers": schedulers.registry.names(),
        "caches": cache.registry.names(),
        "max_tokens": service.limits.max_tokens,
        "settings": {
            "scheduler": short(scheduler.summary(), schedulers.registry),
            "cache": short(policy.summary(), cache.registry),
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
        },
    }
