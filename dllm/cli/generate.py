"""`dllm generate`: completes prompts, if asked to while one watches."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text
from typer import Argument, Option

from dllm import cache as caches
from dllm import schedulers
from dllm.cli import constrained, options
from dllm.cli.asked import STANDARD, Asked, read_asked
from dllm.cli.chosen import collect, constraint_of, over, read_config, template_of
from dllm.cli.loading import load_model, placed, with_recipe
from dllm.cli.prompt_file import Job, answer
from dllm.cli.ranks import follow_if_asked
from dllm.cli.shown import Terminal, say
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.run.describe import short
from dllm.generate import Stream, following, stream
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.state.window import StepEvent
from dllm.trace import TraceRecord, record_of
from dllm.trace.file import check_free, write_records

_WARNED = 3  # prompts with unknown words that are named
_LABEL = 60  # characters of a prompt
PAUSE = 0.05  # seconds a step: the embedded model is faster than the eye
OPEN, DRAFT, NEW, DONE, AGAIN = "dim", "dim italic", "bold green", "default", "bold red"


def generate(
    texts: Annotated[
        list[str] | None,
        Argument(help='Texts to complete; "-" reads stdin.', show_default="none"),
    ] = None,
    prompts: Annotated[
        Path | None,
        Option(
            help='Text, a prompt a line, or .jsonl with "prompt" or "messages", perhaps "id"; '
            '"-" is stdin.',
            show_default="none",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        Option(
            help="JSON lines, one an answer, each as soon as it is there; a stopped command goes "
            'on. "-" is stdout.',
            show_default='"-" with --prompts, else none',
        ),
    ] = None,
    model: options.Model = "tiny",
    revision: options.Revision = None,
    scheduler: options.Scheduler = None,
    cache: options.Cache = None,
    verifier: options.Verifier = None,
    batch_size: options.Batch = None,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    temperature: options.Temperature = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    samples: options.Answers = None,
    regex: constrained.Pattern = None,
    json_schema: constrained.Schema = None,
    grammar: constrained.Grammar = None,
    grammar_method: constrained.Method = None,
    choice: constrained.Choices = None,
    joint: constrained.Joint = None,
    template: constrained.Laid = None,
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
    trace: Annotated[
        Path | None,
        Option(help="Write each row's steps here, for `dllm trace`.", show_default="none"),
    ] = None,
    watch: Annotated[bool, Option(help="Draw the canvas while it fills.")] = False,
    chat_template: options.ChatTemplate = False,
    as_json: options.Json = False,
) -> None:
    """Completes prompts, in one batch or from a file.

    dllm generate "tom has 53 pens. tom loses 3. how many pens does tom have?" --watch

    dllm generate --prompts prompts.txt --output answers.jsonl

    dllm generate "copy: tom, ann, sue." --config mine.json --temperature 0.5

    dllm generate --template gap.json
    """
    place = placed(device, device_map, revision, adapter, family, attention, draft_adapter)
    follow_if_asked(tensor_parallel, place, lambda: load_model(model, dtype, place, speed))
    given, asked = _prompts(texts, prompts, output, alone=template is not None)
    if given is not None and (trace is not None or watch):
        raise ValueError("--watch and --trace do not go with --prompts and --output")
    if trace is not None:
        options.check_writable(trace, "--trace")
        trace.parent.mkdir(parents=True, exist_ok=True)
        check_free(trace)
    named = read_config(config)
    held = constraint_of(regex, json_schema, grammar, choice, joint, grammar_method)
    held |= template_of(template)
    loaded = load_model(model, dtype, place, speed)
    parts: dict[str, Any] = {"scheduler": scheduler, "cache": cache, "verifier": verifier}
    parts |= {"batch_size": batch_size, "stop": tuple(stop or ()) or None, "n": samples, **held}
    flags = collect(settings, max_new_tokens, block_length, temperature, seed, **parts)
    chosen = over(with_recipe(named, recipe, loaded), flags, loaded.defaults)
    warn_unknown_words(loaded, [one for one in asked if isinstance(one, str)])
    if given is not None:
        job = Job(loaded, chosen, chat_template)
        answer(job, given, output or STANDARD, as_json)
        return
    running = stream(loaded, options.inputs(asked, chat_template), chosen)
    interrupted = _run(running, watch and not as_json)
    if trace is not None:
        with options.naming(trace):
            write_records(trace, _records(running, asked))
    report(running.output, as_json)
    if interrupted:
        raise typer.Exit(options.INTERRUPTED)


def _prompts(
    texts: Sequence[str] | None, prompts: Path | None, output: Path | None, alone: bool
) -> tuple[list[Asked] | None, list[Any]]:
    """Returns what `_given` does, and all prompts; an empty one where a template goes `alone`."""
    if alone and prompts is None and not texts:
        if output is not None:
            raise ValueError("--output is of prompts: give one beside --template, or leave it out")
        return None, [""]
    given = _given(texts, prompts, output)
    return given, _read(texts or ()) if given is None else [one.prompt for one in given]


def _given(
    texts: Sequence[str] | None, prompts: Path | None, output: Path | None
) -> list[Asked] | None:
    """Returns the prompts whose answers are written line by line; None: they are printed."""
    if prompts is not None and texts:
        raise ValueError("give texts or --prompts FILE, not both")
    if prompts is None and not texts:
        raise ValueError('give a text to complete, "-" to read one from stdin, or --prompts FILE')
    if output is not None and output != STANDARD:
        options.check_writable(output, "--output")
    if prompts is not None:
        return read_asked(prompts)
    if output is None:
        return None
    read = enumerate(_read(texts or ()), start=1)
    return [Asked(number, f"prompt {number}", text) for number, text in read]


def _read(prompts: Sequence[str]) -> list[str]:
    """Returns the texts, "-" replaced by what stdin holds; raises ValueError for an empty one."""
    texts = [sys.stdin.read().rstrip("\n") if text == "-" else text for text in prompts]
    for number, (text, origin) in enumerate(zip(texts, prompts, strict=True), start=1):
        if not text.strip():
            empty = "stdin is empty" if origin == "-" else f"prompt {number}={text!r} is empty"
            raise ValueError(f'{empty}: give a text to complete, or "-" to read one from stdin')
    return texts


def _records(running: Stream, texts: list[str]) -> list[TraceRecord]:
    """Returns the record of each row, labelled with its method and the beginning of its text."""
    scheduler = short(running.scheduler.summary(), schedulers.registry)
    method = f"{scheduler} / {short(running.cache.summary(), caches.registry)}"
    out, tokenizer = running.output, running.model.tokenizer
    several = len(out.sequences) // len(texts)
    texts = [text for text in texts for _ in range(several)]
    labels = [f"{method}: {shorten(text, _LABEL, placeholder=' ...')}" for text in texts]
    return [record_of(out, row, tokenizer, label) for row, label in enumerate(labels)]


def warn_unknown_words(model: DenoisingModel, texts: list[str]) -> None:
    """Says on stderr which texts hold words that the tokenizer does not know."""
    tokenizer = model.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return
    lacking = [text for text in texts if unknown in tokenizer.encode(text)]
    for text in lacking[:_WARNED]:
        say(f"warning: the model's vocabulary lacks words of: {text[:_LABEL]!r}")
    if len(lacking) > _WARNED:
        say(f"warning: the same of {len(lacking) - _WARNED} prompts more")


def report(out: GenerationOutput, as_json: bool) -> None:
    """Prints the texts and what they cost, or everything as JSON."""
    if as_json:
        record: dict[str, Any] = {
            "texts": out.texts,
            "sequences": out.sequences,
            "metrics": out.metrics.to_dict(),
            "trace": out.trace.to_dict(),
        }
        if out.holes:
            record |= {"holes": [list(map(asdict, row)) for row in out.holes]}
            record |= {"tried": [list(map(asdict, row)) for row in out.tried]}
        print(json.dumps(record))
        return
    console = Terminal()
    for text in out.texts or [str(list(ids)) for ids in out.sequences]:
        console.print(text, markup=False, soft_wrap=True)
    metrics = out.metrics
    forced = sum(row.forced for row in metrics.rows)
    also = f" ({forced} forced)" if forced else ""
    shown = len(metrics.rows) > 1 and metrics.padding is not None
    padding = f", {metrics.padding:.0%} of what was fed was padding" if shown else ""
    Terminal(stderr=True).print(
        f"[dim]{metrics.valid_tokens} tokens{also}, {metrics.num_forwards} forwards, "
        f"{metrics.tokens_per_forward:.2f} tokens per forward, "
        f"{metrics.tokens_per_second:.0f} tokens/s{padding}[/dim]"
    )


def _run(running: Stream, watch: bool) -> bool:
    """Drains a stream; True if Ctrl-C stopped it, what was committed is kept."""
    try:
        drain(running, watch)
    except KeyboardInterrupt:
        say("interrupted: this is what was committed until then")
        return True
    except (BrokenLogitsError, NotEnoughMemoryError):
        report(running.output, as_json=False)
        raise
    return False


def drain(running: Stream, watch: bool) -> None:
    """Drains a stream; watched, it shows of each row what is new, masked again, proposed, open."""
    if not watch:
        several = running.num_answers > 1 and sys.stderr.isatty()
        with following(running, several) as advance:
            for event in running:
                advance(event)
        return
    with Live(console=Terminal(), auto_refresh=False) as live:
        for number, event in enumerate(running, start=1):
            rows = [_row(running, event, row) for row in range(running.canvas.layout.num_rows)]
            caption = Text(f"forward {number} ({event.kind})", style="dim")
            live.update(Group(*rows, caption), refresh=True)
            time.sleep(PAUSE)


def _row(running: Stream, event: StepEvent, row: int) -> Text:
    canvas, tokenizer = running.canvas, running.model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer, so there is no text to watch")
    start, end = int(canvas.prompt_length[row]), int(canvas.kept_length[row])
    drafts = dict(zip(event.columns[row].tolist(), event.drafts[row].tolist(), strict=True))
    new = set(event.columns[row][event.committed[row]].tolist())
    again = set(event.columns[row][event.remasked[row]].tolist())
    text = Text()
    if running.batch is not None:  # a place holds one prompt after the other
        text.append(f"{event.prompts[row]}: ", style=OPEN)
    for column, token in enumerate(canvas.tokens[row, start:end].tolist(), start=start):
        if token != canvas.layout.mask_token_id:
            if token not in canvas.layout.eos_token_ids:
                text.append(str(tokenizer.decode([token])), style=NEW if column in new else DONE)
        elif column in again:  # not its draft: often that is the very token that was taken back
            text.append("·", style=AGAIN)
        elif column in drafts:
            text.append(str(tokenizer.decode([drafts[column]])).strip() or "·", style=DRAFT)
        else:
            text.append("·", style=OPEN)
    return text
