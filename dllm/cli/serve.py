"""`dllm serve`: an OpenAI-compatible server."""

from __future__ import annotations

import errno
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dllm.cli import options
from dllm.cli.chosen import collect, over, read_config
from dllm.cli.loading import load_model, placed, with_recipe
from dllm.cli.ranks import follow_if_asked
from dllm.cli.shown import say
from dllm.compatible import check
from dllm.options import Range, checked

Seconds = Annotated[float, Range(0, 1e6)]
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    model: Annotated[
        str, Argument(help='"tiny", a checkpoint folder or a hub id.', show_default="tiny")
    ] = "tiny",
    name: Annotated[
        str | None,
        Option(help="What clients call the model.", show_default="the last part of MODEL"),
    ] = None,
    host: Annotated[
        str, Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        Option(help="File with the key that clients must send.", show_default="none is needed"),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        Option(help="Page elsewhere that may ask, as a browser names it.", show_default="none"),
    ] = None,
    batch_size: Annotated[
        int, Option("--batch-size", min=1, max=2**12, help="Rows decoded at a time.")
    ] = 16,
    max_waiting: Annotated[
        int, Option(min=1, max=2**20, help="Answers that may wait; more are refused with 429.")
    ] = 256,
    max_tokens: Annotated[
        int, Option(min=1, max=2**20, help="The most that an answer may have.")
    ] = 4096,
    timeout: Annotated[float, Option(help="Seconds after which an answer comes too late.")] = 600.0,
    grace: Annotated[
        float, Option(help="Seconds for running answers once a signal ends the server.")
    ] = 60.0,
    revision: options.Revision = None,
    scheduler: options.Scheduler = None,
    cache: options.Cache = None,
    verifier: options.Verifier = None,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    temperature: options.Temperature = None,
    settings: options.Set = None,
    config: options.Config = None,
    recipe: options.Recipe = None,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    draft_adapter: options.DraftAdapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    speed: options.Speed = "auto",
    family: options.Family = None,
    attention: options.Attention = None,
    tensor_parallel: options.TensorParallel = None,
) -> None:
    """Answers requests of OpenAI's API; those that come together share a batch.

    Options of decoding are what requests start from. Ctrl-C or SIGTERM ends the server once
    running answers are there, a second one at once.

    dllm serve tiny --scheduler threshold:0.9 --cache dual
    """
    _check_installed()
    # An optional package, which only this command needs.
    from dllm.serve.app import app_of
    from dllm.serve.engine import Engine
    from dllm.serve.run import run
    from dllm.serve.service import Access, Limits, Service

    place = placed(device, device_map, revision, adapter, family, attention, draft_adapter)
    follow_if_asked(tensor_parallel, place, lambda: load_model(model, dtype, place, speed))
    checked("--timeout", timeout, Seconds)
    checked("--grace", grace, Seconds)
    key = None if api_key_file is None else _key(api_key_file)
    listening = _listen(host, port)
    named = read_config(config)
    loaded = load_model(model, dtype, place, speed)
    named = with_recipe(named, recipe, loaded)
    parts: dict[str, Any] = {"scheduler": scheduler, "cache": cache, "verifier": verifier}
    flags = collect(settings, max_new_tokens, block_length, temperature, None, **parts)
    base = over(named, flags, loaded.defaults)
    check(loaded, base)
    if loaded.tokenizer is None:
        raise ValueError(f"{model!r} has no tokenizer, and requests are text: give one with it")
    service = Service(
        model=loaded,
        name=name or Path(model).name,
        engine=Engine(loaded, max_rows=batch_size, max_waiting=max_waiting),
        settings=base,
        limits=Limits(max_tokens=max_tokens, answer_seconds=timeout),
        access=Access(key, tuple(allow_origin or ())),
    )
    where = f"http://{host}:{listening.getsockname()[1]}"
    say(f"{service.name} at {where}/v1, a page to chat at {where}; Ctrl-C ends")
    run(app_of(service), service, listening, grace)


def _check_installed() -> None:
    """Raises ValueError where a package is missing that only a server needs."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"dllm serve needs {', '.join(missing)}: pip install 'dllm[serve]', or in a checkout "
            "pip install -e '.[serve]'"
        )


def _key(path: Path) -> str:
    key = path.read_text(encoding="utf-8").strip()
    if not key:
        raise ValueError(f"--api-key-file {path} is empty: write the key into it")
    return key


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens, before a model is loaded for nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        reason = "another server listens there" if taken else os.strerror(error.errno or 0)
        if isinstance(error, socket.gaierror):
            reason = "there is no such address"
        raise ValueError(
            f"--host {host} --port {port}: {reason}; --port 0 takes a free one"
        ) from None
    return listening
