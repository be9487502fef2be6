"""The options that several sub-commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
import yaml

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help='"tiny", a checkpoint folder or a hub id.')
]
SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", "-s", help='Such as "threshold:0.9"; `dllm methods` lists all.'),
]
SchedulersOption = Annotated[
    list[str] | None,
    typer.Option("--scheduler", "-s", help='Such as "threshold:0.9"; repeat to compare several.'),
]
CacheOption = Annotated[
    str | None, typer.Option("--cache", "-c", help='"none", "prefix", "dual", ...')
]
CachesOption = Annotated[
    list[str] | None,
    typer.Option("--cache", "-c", help='"none", "prefix", "dual", ...; repeat to compare several.'),
]
VerifierOption = Annotated[
    str | None, typer.Option("--verifier", "-v", help='"ssd:draft_length=4", "freedave:4", ...')
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-size", help="Rows decoded at a time; other prompts wait.")
]
NewTokensOption = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", help="Slots after each prompt.")
]
BlockOption = Annotated[
    int | None, typer.Option("--block-length", "-b", help="Columns decoded together.")
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", "-t", help="0 takes the most probable token.")
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of sampled tokens and random orders.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16, ...; the checkpoint's own unless given.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
SpeedOption = Annotated[
    str | None,
    typer.Option(help='Faster passes: fused, compiled, captured, int8, or "fused+captured".'),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting as name=value, such as top_p=0.95; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def given(more: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """Returns the settings that were given, by option or by `--set name=value`."""
    settings = {name: value for name, value in options.items() if value is not None}
    for item in more or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r}: write it as name=value")
        if name.strip() in settings:
            raise ValueError(
                f"--set {item!r}: {name.strip()} is given twice, leave one of them out"
            )
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(
                f"--set {item!r}: {value!r} is not a YAML value, such as 3, true or [1, 2]: put a "
                "text with signs in it into quotes"
            ) from None
    return settings
