"""JSON texts that a schema accepts."""

from __future__ import annotations

from dllm.constraints.json_schema.language import JsonSchema

__all__ = ["JsonSchema"]
