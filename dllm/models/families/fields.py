"""Reading a config.json with errors that name the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dllm.models.config import CheckpointError


@dataclass(frozen=True)
class Fields:
    """The keys of one config.json, read by a family named `reader`."""

    config: Mapping[str, Any]
    reader: str

    def has(self, key: str) -> bool:
        """Whether the key is there with a value."""
        return self.config.get(key) is not None

    def integer(self, key: str) -> int:
        """Returns a positive integer."""
        value = self.require(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, value, "a positive integer")
        return value

    def number(self, key: str) -> float:
        """Returns a positive number."""
        value = self.require(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Returns true or false; a missing key is an error unless there is a default."""
        if default is not None and not self.has(key):
            return default
        value = self.require(key)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def rope_theta(self) -> float:
        """Returns the base of the rotary frequencies, refusing every scaled variant.

        transformers 5 writes it into `rope_parameters`, earlier versions at the top level.
        """
        for key in ("rope_scaling", "rope_parameters"):
            rope = self.config.get(key) or {}
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default":
                raise self.error(f"{key}.rope_type", kind, '"default"')
        nested = self.config.get("rope_parameters") or {}
        if not self.has("rope_theta") and "rope_theta" in nested:
            return Fields(nested, self.reader).number("rope_theta")
        return self.number("rope_theta")

    def only(self, allowed: Mapping[str, Any]) -> None:
        """Refuses a key that is set to anything but its allowed value; null counts as unset."""
        for key, expected in allowed.items():
            value = self.config.get(key)
            if value is not None and value != expected:
                raise self.error(key, value, f"{expected!r} or the key left out")

    def require(self, key: str) -> Any:
        """Returns the value of a key that must be there."""
        if not self.has(key):
            raise CheckpointError(f"config.json of {self.reader} has no {key!r}")
        return self.config[key]

    def error(self, key: str, value: object, allowed: str) -> CheckpointError:
        """Returns the error for a value that the family does not support."""
        return CheckpointError(
            f"config.json of {self.reader} has {key}={value!r}; supported: {allowed}"
        )
