"""Settings that replay the generation of LLaDA2.0 and 2.1, and diffusers' LLaDA2Pipeline."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.golden.methods.sdar import SDARNoise

Case = dict[str, Any]


def llada2(case: Case) -> dict[str, Any]:
    args = case["args"]
    editing = args["editing_threshold"]
    return {
        "scheduler": {
            "name": "token_editing",
            "threshold": args["threshold"],
            "editing_threshold": editing if editing and editing > 0 else None,  # theirs: 0 is off
            "post_steps": args["max_post_steps"] + 1,  # its counter allows one more
            "steps": args["num_inference_steps"],
        },
        "cache": {"name": "none", "beyond_block": False},
        "blocks_from": "zero",
        "at_eos": "stop" if args["eos_early_stop"] else "ignore",
    }


class Draws(SDARNoise):
    """Those of `torch.multinomial`, with the forwards that change nothing and are not run here."""

    def __init__(self, case: Case) -> None:
        super().__init__(case["args"]["torch_seed"], case["args"]["block_length"])
        self.steps = iter(case["trace"])

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        for recorded in self.steps:
            drawn = super().tokens(columns, step, vocab_size)
            if recorded["commits"]:
                return drawn
        raise AssertionError("more forwards than were recorded")


def drawn(case: Case) -> dict[str, Any]:
    args = case["args"]
    given = {name: args.get(name) for name in ("temperature", "top_p", "top_k")}
    return {**given, "noise": Draws(case), "confidence": "tempered"}


def of_diffusers(case: Case) -> dict[str, Any]:
    args, end = case["args"], case["args"]["eos_token_id"]
    return {
        **llada2(case),
        **(drawn(case) if args["sampling_method"] == "multinomial" else {}),
        "cache": {"name": "none", "beyond_block": False, "beyond_length": False},
        "eos_token_id": [] if end is None else [end],
        **({} if case["attention"] == "full" else {"blocks_from": "prompt"}),
    }


def recomputed(case: Case) -> dict[str, Any]:
    """Returns what both versions share: everything up to the block's end is recomputed."""
    return {
        "cache": {"name": "none", "beyond_block": False},
        "eos_token_id": [case["args"]["eos_id"]],
    }


def version_0(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler = {
        "name": "token_editing",
        "threshold": args["threshold"],
        "editing_threshold": None,
        "steps": min(args["steps"], args["gen_length"] // args["minimal_topk"]),
    }
    # It looks for end tokens after each block, whatever `eos_early_stop` says; with it, a step that
    # commits one may leave a block that has masks.
    begun = case["final"][: case["trace"][-1]["input_len"]]
    at_eos = "stop" if args["eos_early_stop"] and args["mask_id"] in begun else "block"
    return {**recomputed(case), "scheduler": scheduler, "at_eos": at_eos}


def version_1(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler = {
        "name": "token_editing",
        "threshold": args["threshold"],
        "editing_threshold": args["editing_threshold"],
        "post_steps": args["max_post_steps"],
        "num_to_transfer": args["num_to_transfer"],
    }
    at_eos = "block" if args["eos_early_stop"] else "ignore"
    return {**recomputed(case), "scheduler": scheduler, "at_eos": at_eos}


METHODS = {
    "llada2_pipeline": llada2,
    "diffusers_llada2_pipeline": of_diffusers,
    "llada2.0_generate": version_0,
    "llada2.1_generate": version_1,
}
