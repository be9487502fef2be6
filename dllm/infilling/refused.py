"""What does not go with a template: settings that say otherwise what stands behind a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dllm.constraints.template import Template
from dllm.options import shown
from dllm.schedulers import Needs, Scheduler

REFUSED = {
    "max_new_tokens": "the template says how many tokens there are: leave it out",
    "min_new_tokens": "give each hole the tokens that it is to have, Hole(tokens=...)",
    "constraint": "put it into the hole that it is about, Hole(constraint)",
    "fixed": "put the text into the template, between its holes",
    "infill": "give the text that the gaps stand in as parts of the template",
    "stop": "what it cuts off may be fixed text; end the text in the template",
}


def without_refused(defaults: Mapping[str, Any], laid_out: bool) -> dict[str, Any]:
    """Returns a checkpoint's settings, without what templates refuse where some are `laid_out`.

    Nobody who gives a template has asked for these.
    """
    return {k: value for k, value in defaults.items() if not (laid_out and k in REFUSED)}


def check_settings(settings: Any) -> None:
    """Raises ValueError, by name, for settings of a dataclass that a template leaves no place for.

    Those at their default are taken for not given.
    """
    usual = {one.name: one.default for one in fields(settings)}
    for name, reason in REFUSED.items():
        if (given := getattr(settings, name)) != usual[name]:
            raise ValueError(f"template= refuses {name}={shown(given)}: {reason}")


def check_scheduler(scheduler: Scheduler, needs: Needs) -> None:
    """Raises ValueError for schedulers that do not leave fixed text where it stands."""
    reasons = {
        "moves tokens, and not only replaces them": scheduler.moves_tokens,
        "cuts rows off, and what stands behind a hole with them": needs.shortens,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"template= refuses scheduler {scheduler.summary()['name']!r}: it {reason}; take "
                "one that fills or replaces single columns (threshold, fixed_quota, wino, ...)"
            )


def has_constraint(template: Template | list[Template] | None) -> bool:
    """Returns whether a hole is held to a constraint."""
    listed = template if isinstance(template, list) else [template]
    holes = [hole for one in listed if one is not None for hole in one.holes]
    return any(hole.constraint is not None for hole in holes)
