"""The table of SGLang's guide: which schedulers its engine can host, and why not the others."""

from __future__ import annotations

from dllm.cli.methods import MARKER, escape, markdown_table
from dllm.integrations.sglang import algorithm_name, reasons


def page() -> str:
    """Returns a table of all schedulers, read off the schedulers themselves."""
    head = ("`--dllm-algorithm`", "scheduler", "hosted", "why not")
    rows = (
        (
            f"`{algorithm_name(name)}`",
            f"[`{name}`](../reference/schedulers.md#{name})",
            "no" if reason else "yes",
            escape(str(reason or "")),
        )
        for name, reason in reasons().items()
    )
    return "\n\n".join([MARKER, markdown_table(head, rows)]) + "\n"
