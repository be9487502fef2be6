"""The peer's side: runs in the peer's interpreter, which knows nothing of this project.

Reads one JSON object a line from stdin and answers each with one; what the peer prints goes to
stderr. The first line says which peer and where, the others are decodings to be timed. Nothing of
the peer's code is changed; packages that it imports and a decoding never calls (`UNCALLED`) are
replaced by hollow ones where they are missing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

# d2Cache's package imports its harness along with its decoding.
UNCALLED = ("lm_eval", "hydra", "omegaconf", "accelerate", "dotenv", "dill", "loguru", "tqdm")

Decode = Callable[[Any, dict[str, Any]], Any]


class Hollow(types.ModuleType):
    """A package whose every name is a class that takes anything and does nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Warning,), {"register_new_resolver": staticmethod(_nothing)})


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds hollow packages after all other finders have found none."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns a specification for a package of `UNCALLED`."""
        if name.partition(".")[0] in UNCALLED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        """Returns the hollow package, which is named on stderr."""
        print("missing, replaced by a hollow one: " + spec.name, file=sys.stderr)
        return Hollow(spec.name)

    def exec_module(self, module: Any) -> None:
        """Has nothing to run."""


def fast_dllm(folder: Path, modelling: Path) -> Any:
    """Returns model class and decoding of NVlabs/Fast-dLLM, its folder `llada`."""
    sys.path.insert(0, str(folder / "llada"))
    loops = importlib.import_module("generate")
    names = {"none": "generate", "prefix": "generate_with_prefix_cache"}
    names["dual"] = "generate_with_dual_cache"

    def decode(model: Any, prompts: Any, case: dict[str, Any]) -> Any:
        loop = getattr(loops, names[case["cache"]])
        return loop(model, prompts, threshold=case["threshold"], **_lengths(case))[0]

    return loops.LLaDAModelLM, decode


def llada(folder: Path, modelling: Path) -> Any:
    """Returns model class and decoding of ML-GSAI/LLaDA; its network is in another folder."""
    sys.path.insert(0, str(folder))
    loops = importlib.import_module("generate")
    package = types.ModuleType("network_of_peer")
    package.__path__ = [str(modelling)]  # for its relative imports
    sys.modules[package.__name__] = package
    network = importlib.import_module("network_of_peer.modeling_llada")

    def decode(model: Any, prompts: Any, case: dict[str, Any]) -> Any:
        return loops.generate(model, prompts, **_lengths(case))

    return network.LLaDAModelLM, decode


def d2cache(folder: Path, modelling: Path) -> Any:
    """Returns model class and decoding of Kamichanw/d2Cache: its loop with its dual cache."""
    import torch

    importlib.import_module("transformers")  # asks what is installed: before anything is replaced
    sys.meta_path.append(Missing())
    sys.path.insert(0, str(folder))
    models = importlib.import_module("src.models")
    generate = importlib.import_module("src.generation").generate
    # A table over LLaDA's own vocabulary, made in every step and read by another scheduler only:
    # of a smaller vocabulary it cannot be made.
    vars(importlib.import_module("src.generation.utils"))["get_token_freq"] = _nothing
    cache = functools.partial(importlib.import_module("src.cache").PrefixCache, use_dual=True)

    def decode(model: Any, prompts: Any, case: dict[str, Any]) -> Any:
        os.environ["MASK_TOKEN_ID"] = str(case["mask"])  # where the peer's frames look for it
        record = generate(
            model,
            prompts,
            strategy="vanilla",
            cache_cls=cache,
            gen_length=case["new_tokens"],
            block_length=case["block"],
            mask_token_id=case["mask"],
        )
        return torch.cat([prompts, record[-1].generated_tokens], dim=-1)

    return models.LLaDAModelLM, decode


def _lengths(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "steps": case["new_tokens"],
        "gen_length": case["new_tokens"],
        "block_length": case["block"],
        "mask_id": case["mask"],
    }


def _nothing(*_: Any, **__: Any) -> None:
    return None


def begin(said: dict[str, Any]) -> Any:
    """Returns the loaded model, the decoding, and what is told of both."""
    import torch

    torch.set_num_threads(said["threads"])
    found, decode = PEERS[said["peer"]](Path(said["folder"]), Path(said["modelling"]))
    model = found.from_pretrained(said["checkpoint"], torch_dtype=torch.float32).eval()
    told = {"torch": torch.__version__, "transformers": metadata.version("transformers")}
    return model, decode, {"python": sys.version.split()[0], **told}


def timed(model: Any, decode: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Returns seconds and tokens of one decoding."""
    import torch

    prompts = torch.tensor(case["prompts"])
    with torch.inference_mode():
        start = perf_counter()
        tokens = decode(model, prompts, case)
        seconds = perf_counter() - start
    return {"seconds": seconds, "tokens": tokens.tolist()}


def main() -> None:
    """Answers line by line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    model = decode = None
    for line in sys.stdin:
        said = json.loads(line)
        try:
            if model is None:
                model, decode, answer = begin(said)
            else:
                answer = timed(model, decode, said)
        except Exception:  # noqa: BLE001 whatever a peer raises is told
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


PEERS: dict[str, Any] = {"fast_dllm": fast_dllm, "llada": llada, "d2cache": d2cache}

if __name__ == "__main__":
    main()
