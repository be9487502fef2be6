"""The model "dllm" of the lm-evaluation-harness: any checkpoint, scheduler and cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

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
    Wishes,
    load_model,
    read_arguments,
    usable_device,
)
from dllm.eval.lm_eval.likelihood import Scorer
from dllm.eval.lm_eval.requests import Asked, Encoder, Reader, about, batches, fitted, scorable
from dllm.eval.lm_eval.stats import Stats, describe, stats_file
from dllm.generate import generate


class SharedLM(LM):
    """A model on one of several processes, each of which answers its part of the requests."""

    def __init__(self) -> None:
        super().__init__()
        # Of `accelerate launch` or `torchrun`; older versions of lm_eval talk to it themselves.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available()) if several else None

    @property
    def rank(self) -> int:
        """The number of this process."""
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        """The number of processes that share the requests."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Returns the tensors of all processes in one."""
        if self.accelerator is None:
            return tensor
        gathered: Tensor = self.accelerator.gather(tensor)
        return gathered

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Returns the objects of all processes on process `dst`, None on the others."""
        if self.accelerator is None:
            return [obj]
        gathered: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        """Returns when all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

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


@register_model("dllm")
class DiffusionLM(SharedLM):
    """Answers the harness's requests in their order, in batches of rows of similar length."""

    stats_folder: ClassVar[Path | None] = None  # where costs go that `stats=` names no file for

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.arguments = read_arguments(given)
        device = usable_device(self.arguments)
        if self.accelerator is not None:  # a device of its own for each process
            device = str(self.accelerator.device)
        self.model = load_model(self.arguments, device)
        if self.model.tokenizer is None:
            raise ArgumentError(f"{self.arguments.pretrained!r} has no tokenizer, which tasks need")
        self.encoder = Encoder(self.model.tokenizer)
        wishes = Wishes(self.model, self.arguments)
        self.reader = Reader(self.encoder, wishes)
        self.described = describe(self.model, wishes.base, self.arguments)
        self.stats = Stats(self.described, stats_file(self.arguments, self.stats_folder, self.rank))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the answers, each up to its first stop."""
        asked = fitted(self.reader.asked(requests), self.model, self.arguments.too_long)
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
        pairs = self.reader.pairs(requests, self.model)
        pairs = scorable(pairs, self.model, self.arguments.too_long)
        scorer = Scorer(
            self.model,
            self.arguments.mc_num,
            self.arguments.batch_size,
            self.reader.wishes.base.guidance_scale,
        )
        found = [(0.0, False)] * len(requests)
        with self._bar("loglikelihood", len(requests), disable_tqdm) as bar:
            for i, score in scorer.scores(pairs, greedy=self.arguments.is_check_greedy):
                found[i] = (score.log_likelihood, score.is_greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i].args, found[i])
                self.stats.scored(about(requests[i]), pairs[i], score)
                bar.update()
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a chat as text; one that ends with a beginning of the answer is continued."""
        return self.encoder.chat(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the checkpoint's chat template, for the harness's records."""
        template = self.tokenizer.chat_template if chat_template else None
        return None if template is None else str(template)

    def get_model_info(self) -> dict[str, Any]:
        """Returns what belongs beside the scores: settings, and what the answers cost."""
        return {"dllm": {**self.described, "totals": self.stats.totals}}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        return self.encoder.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's store of requests, in which texts of several models lie."""
        return self.arguments.pretrained.replace("/", "__")

    @property
    def max_length(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self.model.spec.max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends an answer."""
        return self.model.spec.eos_token_ids[0]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
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
