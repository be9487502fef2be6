"""What config.json says of rounded weights: ours are read, and those of others refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dllm.models.config import CheckpointError
from dllm.models.loading.files import FLOATS
from dllm.models.speed.rounded import GROUPS, Rounding

KEY = "quantization_config"  # as transformers calls it
_METHOD, _VERSION = "dllm", 1  # of the tensors that `dllm.save` writes
_E4M3 = "e4m3"  # of floats of 8 bits
_EIGHT = (Rounding(8), Rounding(8, floating=True))
_OTHER_KEYS = ("compression_config", "quantization")


def described(rounding: Rounding) -> dict[str, Any]:
    """Returns the entry of config.json for weights that are rounded so."""
    sizes = {} if rounding.group_size is None else {"group_size": rounding.group_size}
    kind = {"format": _E4M3} if rounding.floating else {}
    return {"quant_method": _METHOD, "version": _VERSION, "bits": rounding.bits, **sizes, **kind}


def read_rounding(config: Mapping[str, Any], folder: Path) -> Rounding | None:
    """Returns how the weights of a folder are rounded, None where they are floats.

    Raises CheckpointError for what another program wrote, or another version of this one.
    """
    how = config.get(KEY)
    if not isinstance(how, Mapping) or how.get("quant_method") != _METHOD:
        _refuse_others(config, folder)
        return None
    for rounding in (*_EIGHT, *(Rounding(4, size) for size in GROUPS)):
        if how == described(rounding):
            return rounding
    version, groups = how.get("version"), ", ".join(map(str, GROUPS))
    if version != _VERSION:
        raise CheckpointError(
            f"{folder} has rounded weights of version {version!r}, and this dllm reads version "
            f"{_VERSION}: take the dllm that wrote it, or round the original again "
            "(`dllm quantize`)"
        )
    raise CheckpointError(
        f"{folder}: config.json has {KEY}={dict(how)!r}; expected 8 bits, perhaps with "
        f"format {_E4M3!r}, or 4 bits with group_size {groups}, and nothing else. "
        "Round the original again (`dllm quantize`)"
    )


def _refuse_others(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses a config.json that says how weights were quantised."""
    for key in (KEY, *_OTHER_KEYS):
        how = config.get(key)
        if how:
            named = how if isinstance(how, dict) else {}
            words = ("quant_method", "bits", "load_in_4bit", "load_in_8bit", "format", "fmt")
            kinds = ", ".join(f"{word}={named[word]!r}" for word in words if named.get(word))
            raise CheckpointError(
                f"{folder} is quantised (config.json has {key}{': ' * bool(kinds)}{kinds}), and "
                f"weights are read as floats only: {FLOATS}"
            )
