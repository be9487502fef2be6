"""The model "dllm" of the lm-evaluation-harness: any checkpoint, scheduler and cache.

What its requests cost is noted as a JSON line each, and summed up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

# Before ours: the harness lists its own models only while it knows of none.
import lm_eval.models  # noqa: F401
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from dllm.eval.lm_eval.arguments import (
    ArgumentError,
    Arguments,
    Wishes,
    load_model,
    read_arguments,
    usable_device,
)
from dllm.eval.lm_eval.likelihood import Continuation, Score, Scorer
from dllm.eval.lm_eval.requests import Asked, Encoder, about, batches, read_asked, read_pairs
from dllm.eval.run.describe import name_of, origin_of, settings_of
from dllm.eval.run.results import append_lines, mend
from dllm.eval.run.summary import ratio
from dllm.generate import generate
from dllm.models.model import HostedModel
from dllm.output import GenerationOutput
from dllm.settings import PARTS, Settings

FILE = "gen_stats.jsonl"
_OWN = ("batch_size", "mc_num", "is_check_greedy", "too_long")  # arguments that are described
SUMMED = ("valid_tokens", "raw_tokens", "forwards", "row_forwards", "tokens_fed", "seconds")


@register_model("dllm")
class DiffusionLM(LM):
    """Answers the harness's requests in their order, in batches of rows of similar length.

    Of several processes each answers its part.
    """

    stats_folder: ClassVar[Path | None] = None  # where costs go that `stats=` names no file for

    def __init__(self, **given: Any) -> None:
        super().__init__()
        # Of `accelerate launch` or `torchrun`; older versions of lm_eval talk to it themselves.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available()) if several else None
        self.arguments = read_arguments(given)
        device = usable_device(self.arguments)
        if self.accelerator is not None:
            self._rank = int(self.accelerator.process_index)
            self._world_size = int(self.accelerator.num_processes)
            device = str(self.accelerator.device)  # of its own for each process
        self.model = load_model(self.arguments, device)
        if self.model.tokenizer is None:
            raise ArgumentError(f"{self.arguments.pretrained!r} has no tokenizer, which tasks need")
        self.encoder = Encoder(self.model.tokenizer)
        self.wishes = Wishes(self.model, self.arguments)
        self.described = describe(self.model, self.wishes.base, self.arguments)
        self.stats = Stats(self.described, stats_file(self.arguments, self.stats_folder, self.rank))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the answers, each up to its first stop."""
        asked = read_asked(requests, self.encoder, self.wishes)
        answers = [""] * len(requests)
        with self._bar("generate_until", len(requests), disable_tqdm) as bar:
            for batch in batches(asked, self.arguments.batch_size):
                texts = self._decode([asked[i] for i in batch])
                for i, text in zip(batch, texts, strict=True):
                    answers[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(batch))
        self.stats.write([{"kind": "totals", **self.stats.totals}])
        return answers

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Returns the bound on each continuation's log likelihood, in nats, and if it is greedy."""
        pairs = read_pairs(requests, self.encoder, self.wishes)
        guidance_scale = self.wishes.base.guidance_scale
        own = self.arguments
        scorer = Scorer(self.model, own.mc_num, own.batch_size, guidance_scale)
        found = [(0.0, False)] * len(requests)
        with self._bar("loglikelihood", len(requests), disable_tqdm) as bar:
            for i, score in scorer.scores(pairs, greedy=self.arguments.is_check_greedy):
                found[i] = (score.log_likelihood, score.is_greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i].args, found[i])
                self.stats.scored(about(requests[i]), pairs[i], score)
                bar.update()
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Raises NotImplementedError; see the message."""
        raise NotImplementedError(
            "perplexity tasks need the likelihood of a whole text. A masked diffusion model only "
            "has a bound on it, which depends on how the text is cut into windows and must not be "
            "compared with the exact figures of other models: take tasks that generate or that "
            "choose between answers"
        )

    def all_gather(self, tensor: Tensor) -> Tensor:
        gathered: Tensor = tensor if self.accelerator is None else self.accelerator.gather(tensor)
        return gathered

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self.accelerator is None:
            return [obj]
        gathered: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a chat as text; one that ends with a beginning of the answer is continued."""
        return self.encoder.chat(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        template = self.tokenizer.chat_template if chat_template else None
        return None if template is None else str(template)

    def get_model_info(self) -> dict[str, Any]:
        """Returns what belongs beside the scores: settings, and what the answers cost."""
        return {"dllm": {**self.described, "totals": self.stats.totals}}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.encoder.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's store of requests, in which texts of several models lie."""
        return self.arguments.pretrained.replace("/", "__")

    @property
    def max_length(self) -> int:
        return self.model.spec.max_length

    @property
    def eot_token_id(self) -> int:
        return self.model.spec.eos_token_ids[0]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def _decode(self, batch: Sequence[Asked]) -> list[str]:
        settings = replace(batch[0].settings, seed=[item.seed for item in batch])
        prompts = [item.prompt for item in batch]
        try:
            out = generate(self.model, prompts, settings)
        except ValueError as error:
            raise ArgumentError(
                f"{error}. --model_args sets what decoding needs, such as gen_length=256 and "
                "block_length=32, whatever the task asks for"
            ) from error
        assert out.texts is not None
        texts = [item.cut(text) for item, text in zip(batch, out.texts, strict=True)]
        lines = [
            {**item.about, "num_cut": item.num_cut, "stopped": cut != text}
            for item, text, cut in zip(batch, out.texts, texts, strict=True)
        ]
        self.stats.generated(lines, out)
        return texts

    def _bar(self, name: str, total: int, disabled: bool) -> Any:
        return tqdm(total=total, desc=name, disable=disabled or self.rank != 0)


def describe(model: HostedModel, settings: Settings, arguments: Arguments) -> dict[str, Any]:
    """Returns what decides the answers and their cost, as JSON-ready values.

    `settings` are those of requests that ask for nothing themselves. As in `dllm eval`, the
    checkpoint's content and the code of the parts are in it as digests; tasks are the harness's.
    """
    described = {
        "model": model.name,
        "dtype": str(model.dtype),
        "device": str(model.device),
        **dict.fromkeys(PARTS),  # one that there is not is None
        **settings_of(settings),
        "model_args": dict(arguments.settings),
        **{name: getattr(arguments, name) for name in _OWN},
        **origin_of(model, settings),
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return {"run": name_of(described), **json.loads(text)}


def stats_file(arguments: Arguments, folder: Path | None, rank: int) -> Path | None:
    """Returns the file that a process writes costs to, if any; each process has its own."""
    if arguments.stats is not None:
        path = Path(arguments.stats)
    elif folder is not None:
        path = folder / FILE
    else:
        return None
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


@dataclass
class Stats:
    """Adds up what requests cost; with a file, each batch is on the disk before the next runs."""

    described: Mapping[str, Any]  # whose `run` names the settings: several runs may share a file
    path: Path | None = None
    num_requests: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))

    def __post_init__(self) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            mend(self.path)
        except OSError as error:  # now rather than after the first batch
            raise ArgumentError(f"stats={str(self.path)!r} cannot be written: {error}") from error

    def generated(self, about: Sequence[Mapping[str, Any]], out: GenerationOutput) -> None:
        """Notes a batch; `about` names the request of each row."""
        share = 1 / len(about)
        lines = []
        for request, row in zip(about, out.metrics.rows, strict=True):
            cost = {
                **{name: getattr(row, name) for name in SUMMED[:4]},
                "tokens_fed": out.metrics.tokens_fed * share,
                "seconds": out.metrics.seconds * share,
            }
            self.num_requests += 1
            for name, value in cost.items():
                self.sums[name] += value
            lines.append(
                {
                    "kind": "generate_until",
                    **request,
                    "prompt_tokens": row.prompt_tokens,
                    **cost,
                    "tokens_per_forward": row.tokens_per_forward,
                    "finish_reason": row.finish_reason,
                }
            )
        self.write(lines)

    def scored(self, about: Mapping[str, Any], given: Continuation, score: Score) -> None:
        """Notes a continuation that was scored."""
        counts = {"context_tokens": given.start, "target_tokens": len(given.tokens) - given.start}
        self.write([{"kind": "loglikelihood", **about, **counts, **asdict(score)}])

    @property
    def totals(self) -> dict[str, float]:
        """The sums over all generated requests of this process, and their ratios."""
        sums = self.sums
        return {
            "requests": self.num_requests,
            **sums,
            "tokens_per_forward": ratio(sums["valid_tokens"], sums["forwards"]),
            "raw_tokens_per_forward": ratio(sums["raw_tokens"], sums["forwards"]),
            "tokens_per_second": ratio(sums["valid_tokens"], sums["seconds"]),
        }

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends lines and waits until they are on the disk."""
        if self.path is not None:
            append_lines(self.path, ({"run": self.described["run"], **line} for line in lines))
