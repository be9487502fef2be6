"""A LoRA adapter as PEFT writes it, merged into a checkpoint's tensors while they are loaded.

Both name modules as the model's own code does, so an adapter's tensors are found by the names of
the checkpoint, also where dllm puts several of them into one parameter. Source: huggingface/peft,
tuners/lora (`LoraConfig`, `update_layer`, `get_delta_weight`) and utils/save_and_load.py.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from dllm.models.config import CheckpointError, printable
from dllm.models.loading.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PLAIN,
    StoredTensor,
    first_few,
    read_header,
    read_json,
    stream_tensors,
)

logger = logging.getLogger(__name__)

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# Of a plain LoRA: what says how it was made, trained or found, and changes no sum.
_HARMLESS = (
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("peft_version", "inference_mode", "runtime_config", "r", "lora_alpha", "lora_dropout"),
    *("rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config"),
    *("loftq_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
    *("ensure_weight_tying", "bias"),
)
# Others, such as PiSSA and OLoRA, take something out of the base model's weights first.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
# A pattern is a regular expression of somebody's file: one that repeats what repeats has no end.
_LONGEST_PATTERN, _ENDLESS = 200, re.compile(r"\)[*+{]|(?:[*+{].*){4}")

_WAY_OUT = "merge it with peft (merge_and_unload(), then save_pretrained) and load the result"


@dataclass(frozen=True)
class Adapter:
    """The LoRA of a folder; every one that cannot be merged exactly is refused by name."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its adapter_config.json; CheckpointError for what is no plain LoRA."""
        path = self.folder / ADAPTER_CONFIG
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder} has no {ADAPTER_CONFIG}, so it is no adapter: give the folder that "
                "peft's save_pretrained wrote"
            )
        config = read_json(path)
        for key, allowed in (("peft_type", ("LORA",)), ("bias", (None, "none"))):
            if config.get(key) not in allowed:
                raise self._error(key, config.get(key), f'"{allowed[-1]}"')
        begun = config.get("init_lora_weights")
        if not any(begun is known or begun == known for known in _BEGINNINGS):
            raise self._error("init_lora_weights", begun, "true, false, gaussian, eva, orthogonal")
        for key, value in config.items():
            if value and key not in _HARMLESS:  # null, false and empty: not used
                raise self._error(key, value, "the key left out, null or false")
        return config

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Its tensors, from the header of its file."""
        path = self.folder / ADAPTER_WEIGHTS
        if not path.is_file():
            pickled = path.with_suffix(".bin")
            there = f"; {pickled.name} is a pickle, which can run code" if pickled.is_file() else ""
            raise CheckpointError(
                f"{self.folder} has no {ADAPTER_WEIGHTS}{there}: save the adapter anew with peft's "
                "save_pretrained(folder, safe_serialization=True)"
            )
        return read_header(path)

    @cached_property
    def _pairs(self) -> dict[str, dict[str, str]]:
        """The tensors A and B of each module of the checkpoint."""
        pairs: dict[str, dict[str, str]] = {}
        odd = []
        for name in sorted(self.stored):
            found = _TENSOR.fullmatch(name)
            if found is None or self.stored[name].kind not in PLAIN:
                odd.append(f"{name} {self.stored[name].kind}")
            else:
                pairs.setdefault(found["module"], {})[found["side"]] = name
        alone = [
            f"{module} has no lora_{'AB'[len(pair) and 'A' in pair]}.weight"
            for module, pair in pairs.items()
            if len(pair) < 2
        ]
        if odd or alone or not pairs:
            what = first_few([*odd, *alone]) or "no tensor at all"
            raise CheckpointError(
                f"{self.folder}: merged are pairs base_model.model.MODULE.lora_A.weight and "
                f"lora_B.weight in floats, and there is {what}. For an adapter of another kind, "
                f"{_WAY_OUT}"
            )
        return pairs

    def low_rank(self, module: str) -> tuple[Tensor, Tensor, float] | None:
        """Returns A (rank, inputs), B (outputs, rank) and the scale of a module; None: has none."""
        if module not in self._pairs:
            return None
        a, b = (self._tensors[self._pairs[module][side]] for side in "AB")
        return a, b, self.scale(module)

    def check(self, shapes: Mapping[str, Collection[int]]) -> None:
        """Raises CheckpointError unless it fits the tensors of a checkpoint, by name and shape."""
        lost = [module for module in self._pairs if f"{module}.weight" not in shapes]
        if lost:
            known = {name.split(".")[-2] for name, shape in shapes.items() if len(shape) == 2}
            raise CheckpointError(
                f"{self.folder} adapts {len(lost)} modules that are no weights of this model: "
                f"{first_few(lost)}; it has {', '.join(sorted(known))} (a head that is tied to the "
                "embedding is none of its own). Load the model that the adapter was trained on"
            )
        wrong = []
        for module, pair in self._pairs.items():
            self.scale(module)  # before anything is loaded
            rank, shape = self.rank(module), tuple(shapes[f"{module}.weight"])
            found = {side: self.stored[pair[side]].shape for side in "AB"}
            if len(shape) != 2 or found != {"A": (rank, shape[1]), "B": (shape[0], rank)}:
                wrong.append(
                    f"{module} {list(shape)} with A {list(found['A'])} and B {list(found['B'])} of "
                    f"rank {rank}"
                )
        if wrong:
            raise CheckpointError(
                f"{self.folder}: the shapes of {len(wrong)} modules do not fit, A must be [rank, "
                f"inputs] and B [outputs, rank]: {first_few(wrong)}"
            )

    def warn_of_another_base(self, model: str) -> None:
        """Warns where the adapter names another model than the one that is loaded."""
        base = self.config.get("base_model_name_or_path")
        if isinstance(base, str) and base and PurePath(base).name != PurePath(model).name:
            text = (
                f"{self.folder} is of base_model_name_or_path={base!r} and is merged into "
                f"{model!r}: answers are only right if the two are the same weights"
            )
            logger.warning("%s", printable(text))

    def rank(self, module: str) -> int:
        """Returns the rank of a module: that of the first pattern that its name ends with."""
        value = self._of("r", "rank_pattern", module)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._error(f"r of {module}", value, "a positive integer")
        return value

    def scale(self, module: str) -> float:
        """Returns what the product B A of a module is multiplied by."""
        alpha, rank = self._of("lora_alpha", "alpha_pattern", module), self.rank(module)
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not is_number or not math.isfinite(alpha):
            raise self._error(f"lora_alpha of {module}", alpha, "a number")
        wide = self.config.get("use_rslora", False)
        if not isinstance(wide, bool | None):
            raise self._error("use_rslora", wide, "true or false")
        return float(alpha) / (math.sqrt(rank) if wide else rank)

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """Returns a checkpoint's tensor plus scale * B A, summed in float32 at least."""
        module = name.removesuffix(".weight")
        if module not in self._pairs or module == name:
            return tensor
        wide = torch.promote_types(tensor.dtype, torch.float32)
        a, b = (self._tensors[self._pairs[module][side]].to(wide) for side in "AB")
        return tensor.to(wide, copy=True).addmm_(b, a, alpha=self.scale(module))

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """All its tensors, which are views of the file's pages."""
        return dict(stream_tensors(self.stored, self.stored))

    def _of(self, key: str, patterns: str, module: str) -> Any:
        named = self.config.get(patterns) or {}
        if not isinstance(named, Mapping):
            raise self._error(patterns, named, "an object")
        for pattern, value in named.items():
            if self._matches(pattern, module):
                return value
        return self.config.get(key)

    def _matches(self, pattern: str, module: str) -> bool:
        """Whether a module is of a pattern, as `get_pattern_key` of peft decides it."""
        if len(pattern) > _LONGEST_PATTERN or _ENDLESS.search(pattern):
            raise self._error("a pattern", pattern, "the end of a module's name, without repeats")
        try:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
        except re.error as error:
            raise self._error("a pattern", pattern, f"a regular expression ({error})") from None

    def _error(self, key: str, value: object, allowed: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder / ADAPTER_CONFIG} has {key}={value!r}; merged here is: {allowed}. "
            f"Otherwise {_WAY_OUT}"
        )
