"""`dllm generate`: completes prompts, if asked to while one watches."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from rich.console import Console

from dllm import cache as caches
from dllm import load, schedulers
from dllm.cli.options import (
    BatchOption,
    BlockOption,
    CacheOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    NewTokensOption,
    SchedulerOption,
    SeedOption,
    SetOption,
    SpeedOption,
    TemperatureOption,
    VerifierOption,
    given,
)
from dllm.cli.paths import check_writable
from dllm.cli.texts import read_texts
from dllm.cli.watch import watch as draw
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.run.describe import short
from dllm.generate import Stream, stream
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.trace.file import check_free, write_records
from dllm.trace.record import TraceRecord, record_of

INTERRUPTED = 130
_LABEL = 60  # characters of a prompt


def generate(
    prompts: Annotated[list[str], typer.Argument(help='Texts to complete; "-" reads stdin.')],
    model: ModelOption = "tiny",
    scheduler: SchedulerOption = None,
    cache: CacheOption = None,
    verifier: VerifierOption = None,
    batch_size: BatchOption = None,
    max_new_tokens: NewTokensOption = None,
    block_length: BlockOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    speed: SpeedOption = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write each row's steps here, for `dllm trace`.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Draw the canvas while it fills.")] = False,
    chat_template: Annotated[
        bool, typer.Option("--chat", help="Put each prompt into the chat template.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Completes one or more prompts in one batch.

    dllm generate "tom has 53 pens. tom loses 3. how many pens does tom have?" --watch
    """
    if trace is not None:
        check_writable(trace, "--trace")
        trace.parent.mkdir(parents=True, exist_ok=True)
        check_free(trace)
    texts = read_texts(prompts)
    loaded = load(model, dtype=dtype, device=device, speed=speed)
    inputs: Any = [[{"role": "user", "content": t}] for t in texts] if chat_template else texts
    options = given(
        settings,
        scheduler=scheduler,
        cache=cache,
        verifier=verifier,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        temperature=temperature,
        seed=seed,
    )
    warn_unknown_words(loaded, texts)
    running = stream(loaded, inputs, **options)
    interrupted = _run(running, watch and not as_json)
    if trace is not None:
        write_records(trace, _records(running, texts))
    report(running.output, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _records(running: Stream, texts: list[str]) -> list[TraceRecord]:
    """Returns the record of each row, labelled with its method and the beginning of its text."""
    scheduler = short(running.scheduler.summary(), schedulers.registry)
    method = f"{scheduler} / {short(running.cache.summary(), caches.registry)}"
    out, tokenizer = running.output, running.model.tokenizer
    labels = [f"{method}: {shorten(text, _LABEL, placeholder=' ...')}" for text in texts]
    return [record_of(out, row, tokenizer, label) for row, label in enumerate(labels)]


def warn_unknown_words(model: DenoisingModel, texts: list[str]) -> None:
    """Says on stderr which texts hold words that the tokenizer does not know."""
    tokenizer = model.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return
    for text in texts:
        if unknown in tokenizer.encode(text):
            Console(stderr=True).print(
                f"warning: the model's vocabulary lacks words of: {text!r}", markup=False
            )


def report(out: GenerationOutput, as_json: bool) -> None:
    """Prints the texts and what they cost, or everything as JSON."""
    if as_json:
        record = {
            "texts": out.texts,
            "sequences": out.sequences,
            "metrics": out.metrics.to_dict(),
            "trace": out.trace.to_dict(),
        }
        print(json.dumps(record))
        return
    console = Console(highlight=False)
    for text in out.texts or [str(list(ids)) for ids in out.sequences]:
        console.print(text, markup=False, soft_wrap=True)
    metrics = out.metrics
    Console(stderr=True, highlight=False).print(
        f"[dim]{metrics.valid_tokens} tokens, {metrics.num_forwards} forwards, "
        f"{metrics.tokens_per_forward:.2f} tokens per forward, "
        f"{metrics.tokens_per_second:.0f} tokens/s[/dim]"
    )


def _run(running: Stream, watch: bool) -> bool:
    """Drains a stream; True if Ctrl-C stopped it, what was committed is kept."""
    try:
        if watch:
            draw(running)
        else:
            for _ in running:
                pass
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: this is what was committed until then")
        return True
    except (BrokenLogitsError, NotEnoughMemoryError):
        report(running.output, as_json=False)
        raise
    return False
