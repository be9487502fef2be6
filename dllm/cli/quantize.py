"""`dllm quantize`: rounds the weights of a model and saves them so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dllm.cli import options
from dllm.cli.loading import load_model, placed
from dllm.cli.shown import say
from dllm.models.loading import save
from dllm.models.memory import readable
from dllm.models.speed.rounded import parse_rounding


def quantize(
    model: Annotated[str, Argument(help='"tiny", a checkpoint folder or a hub id.')],
    output: Annotated[Path, Argument(help="The folder to write; it must be new, or empty.")],
    to: Annotated[
        str,
        Option(help="int8, fp8 (floats), int4, or int4 with a group size: int4:group_size=32."),
    ] = "int8",
    revision: options.Revision = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Rounds weights to 8 or 4 bits and saves them in a folder that loads so.

    dllm quantize tiny tiny-int4 --to int4
    """
    rounding = parse_rounding(to)
    if rounding is None:
        raise ValueError(
            f"--to {to!r} must be int8, fp8, int4 or int4:group_size=32 (64, 128, 256)"
        )
    options.check_writable(output / "config.json", "output")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output} has something in it: name a new folder, or an empty one")
    # The layers that are read are rounded before the next ones are, so no copy in full is there.
    place = placed(device, None, revision, adapter)
    loaded = load_model(model, dtype, place, speed=rounding.way)
    save(loaded, output)
    size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    if as_json:
        print(json.dumps({"folder": str(output), "way": rounding.way, "bytes": size}))
    else:
        say(f"{output}: {readable(size)} of weights, layers in {rounding.way}")
