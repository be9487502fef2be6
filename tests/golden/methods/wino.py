"""Settings that replay WINO."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]


def wino(case: Case) -> dict[str, Any]:
    names = ("threshold", "threshold_back")
    return {"scheduler": {"name": "wino", **{name: case["args"][name] for name in names}}}


METHODS = {"wino": wino}
