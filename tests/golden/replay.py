"""Replays recorded runs of the official implementations through the public API.

    python tests/golden/replay.py --models tests/golden/models --cases tests/golden/cases

Prints a line for each method and exits with 1 if any recording is not reproduced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, it finds its own package

import dllm
from tests.golden.blockwise import BLOCKWISE, STALE, WRITES_OVER, replay_blocks
from tests.golden.methods import METHODS, Case

MASK, END = 126, 127


@dataclass(frozen=True)
class Difference:
    """Where a replay left the recording."""

    case: str
    what: str


# Recordings that are not reproduced, with the reason (README.md beside this file has more).
KNOWN_DIFFERENCES = {
    "generate_learn2parallel_llada_gqa_g96_b32_s48_f32_a0.5": (
        "a quota beyond the block's masks makes the official topk commit a column of a later block"
    ),
    "decoded_right_c4_g32_s32_maskgit_plus": (
        "masks without logits get -inf, whose softmax is not a number, and token 0 is committed"
    ),
    "freedave_llada_mha_g64_b16_prefix_thNone_12_d4_tree_attention_eager": (
        "eager acceptance commits in the next block before its refresh, which changes the tokens"
    ),
    **dict.fromkeys(
        WRITES_OVER, "a quota beyond the block's masks has topk write over a filled column"
    ),
    **dict.fromkeys(STALE, "a block begins over the block cache that the one before left"),
}

for reason, names in {
    "a posterior is not offered; its authors forget the cache where they use an output again": (
        "e2d2_12_tied_p18_b8_g32_s24_th1e+06_align_posterior",
        "e2d2_13_tied_p18_b8_g32_s24_th1e+06_align_posterior_sample",
        "e2d2_33_untied_p18_b8_g32_s24_th1e+06_posterior_sample",
        "e2d2_34_untied_p18_b4_g24_s4_th1e+06_posterior_firsthit_sample",
    ),
}.items():
    KNOWN_DIFFERENCES |= dict.fromkeys(names, reason)


# LLaDA2's own generation rounds the length up, and cuts what it returns.
WHOLE_BLOCKS = ("llada2.0_generate", "llada2.1_generate")


# Files of single steps, with the test that replays them.
STEPS = {
    "sglang_dllm_steps": "tests/schedulers/test_sglang_steps.py",
    "diffusers_scheduler_steps": "tests/schedulers/test_diffusers_steps.py",
}


# Recordings of a part, not of a generation, with the test that replays them.
NOT_END_TO_END = {
    "block_refinement_step": "tests/schedulers/test_token_editing.py",
    "learn2pd_training_data": "tests/schedulers/test_learn2pd.py",
    "renoise_block": "tests/schedulers/test_renoise.py",
    "renoise_step": "tests/schedulers/test_renoise.py",
}


def method_of(case: Case) -> str:
    """Returns the key of METHODS for a case, '' if its method is not replayed yet."""
    method = case["method"]
    for prefix in ("fastdllm_factor_", "fastdllm_v1_early_stop_", "fastdllm_v1_"):
        method = method.replace(prefix, "fastdllm_")
    return method if method in METHODS else ""


@cache
def load_model(path: Path, dtype: str) -> dllm.HostedModel:
    return dllm.load(path, dtype=dtype)


def model_of(case: Case, models: Path) -> dllm.HostedModel:
    """Returns the model of a case, with the attention that was recorded."""
    model = load_model(models / case["model"], case["dtype"])
    if model.spec.attention != "block_causal":
        return model
    if case.get("attention") == "full" and num_columns(case) == len(case["final"]):
        return replace(model, spec=replace(model.spec, attention="full", block_length=None))
    if case.get("attention") == "full":  # one block sees itself; its end is decoded, too
        return replace(model, spec=replace(model.spec, block_length=len(case["final"])))
    block = case["args"]["block_length"]  # of the mask too, whatever the checkpoint says
    return replace(model, spec=replace(model.spec, block_length=block))


def replay(case: Case, models: Path) -> Difference | None:
    """Runs a case; returns how tokens, commits or forwards differ, None if they do not."""
    if case["method"] in BLOCKWISE:
        what = replay_blocks(case, load_model(models / case["model"], case["dtype"]))
        return None if what is None else Difference(case["id"], what)
    args = case["args"]
    new_tokens = num_new_tokens(case)
    settings = {
        "max_new_tokens": new_tokens,
        "block_length": args.get("block_length", new_tokens),
        "at_eos": "truncate" if args.get("early_stop") else "ignore",
        "statistics_dtype": torch.float64,
        **METHODS[method_of(case)](case),
    }
    model = model_of(case, models)
    if "verifier" in settings:
        return replay_verified(case, model, settings)
    if case["method"] == "e2d2_generate":
        return replay_encoded(case, model, settings)
    if case["method"] == "wedlm_engine":
        return replay_streaming(case, model, settings)
    out = dllm.generate(model, [case["prompt"]], **settings)
    # Forwards that the official loop runs on a canvas or block that is already full.
    recorded = [step for step in case["trace"] if not idle(step, case)]
    kept = range(end_of_text(case))
    commits = [sorted((p, t) for p, t in writes(step) if p in kept) for step in recorded]
    got = [sorted((p, t) for p, t in step if p in kept) for step in out.trace.commits(0)]
    got += [[]] * (out.metrics.num_forwards - len(got))
    tokens, final = list(out.sequences[0]), final_tokens(case)
    if goes_on(case, commits, len(got)):
        end = final.index(case["args"]["eos_token_id"], len(case["prompt"]))
        recorded, commits = recorded[: len(got)], commits[: len(got)]
        tokens, final = tokens[: end + 1], final[: end + 1]
    if tokens != final:
        return Difference(case["id"], f"tokens {tokens} != {final}")
    if got != commits:
        first = next(
            (i for i, (a, b) in enumerate(zip(got, commits, strict=False)) if a != b), None
        )
        return Difference(case["id"], f"{len(got)} forwards, {len(commits)} recorded; step {first}")
    fed = [step["input_len"] for step in recorded]
    if list(out.metrics.fed) != fed:
        return Difference(case["id"], f"columns fed {list(out.metrics.fed)} != {fed}")
    return None


def replay_verified(
    case: Case, model: dllm.HostedModel, settings: dict[str, Any]
) -> Difference | None:
    """Runs a case of draft and verify pass by pass; returns how it differs, None if not.

    The authors write what the last logits of a pass decide in their next pass, unless it is the
    last step of its block, and also run the full canvas at the end of a block, for nothing.
    """
    running = dllm.stream(model, [case["prompt"]], **settings)
    drafts, certain = int(settings["verifier"]["draft_steps"]), [0]
    for _ in running:
        certain.append(int(running.canvas.step[0]))
    out, commits = running.output, running.output.trace.commits(0)
    if list(out.sequences[0]) != final_tokens(case):
        return Difference(case["id"], f"tokens {list(out.sequences[0])} != {final_tokens(case)}")
    if out.metrics.num_forwards != case["nfe"]:
        return Difference(case["id"], f"{out.metrics.num_forwards} forwards, not {case['nfe']}")
    block, written = case["args"]["block_length"], 0
    for number, (step, sure) in enumerate(zip(case["trace"], certain[1:], strict=True)):
        num_done = sum(map(len, commits[:sure]))
        upto = sure if num_done % block == 0 else sure - 1
        ours = sorted(pair for write in commits[written:upto] for pair in write)
        if ours != sorted((place, token) for place, token in step["commits"]):
            return Difference(case["id"], f"pass {number} writes {ours}, not {step['commits']}")
        left = block - sum(map(len, commits[:written])) % block
        canvases = 1 if step["past_len"] == 0 else min(drafts, left)
        fed = out.metrics.fed[number]
        if settings["verifier"]["execution"] == "tree":
            fed *= canvases
        if fed != step["input_len"]:
            return Difference(case["id"], f"pass {number} feeds {fed}, not {step['input_len']}")
        written = upto
    return None


def replay_streaming(
    case: Case, model: dllm.HostedModel, settings: dict[str, Any]
) -> Difference | None:
    """Runs a case of WeDLM's engine pass by pass; returns how it differs, None if not.

    Its window has no end at `max_tokens`: so the canvas is longer, and what follows the recorded
    tokens is left out. Its last pass only stores, and a row that an end token ended has none.
    """
    args, trace, start = case["args"], case["trace"], len(case["prompt"])
    longer = {**settings, "max_new_tokens": args["max_tokens"] + 2 * args["window"]}
    fed: list[list[int]] = []

    class Feeding:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def forward(self, tokens: Any, plan: Any, store: Any) -> Any:
            kept = plan.positions[0][plan.stored[0] >= 0]
            fed.append(kept.tolist())
            return model.forward(tokens, plan, store)

    running = dllm.stream(Feeding(), [case["prompt"]], **longer)
    events = list(zip(running, trace, strict=False))
    tokens = list(running.output.sequences[0])[: len(case["final"])]
    if len(events) < len(trace) - 1:
        return Difference(case["id"], f"{len(events)} passes, {len(trace)} recorded")
    for number, (event, step) in enumerate(events):
        written = event.committed[0]
        pairs = zip(event.columns[0][written], event.tokens[0][written], strict=True)
        ours = [[int(place), int(token)] for place, token in pairs]
        if number < len(trace) - 1 and ours != sorted(step["commits"]):
            return Difference(case["id"], f"pass {number} writes {ours}, not {step['commits']}")
        first = step["prefix_len"] if number else 0  # our first pass reads the prompt too
        wanted = [*range(first, start), *sorted(step["position_ids"])]
        if fed[number] != wanted:
            return Difference(case["id"], f"pass {number} feeds {fed[number]}, not {wanted}")
    if tokens != case["final"]:
        return Difference(case["id"], f"tokens {tokens} != {case['final']}")
    return None


def replay_encoded(
    case: Case, model: dllm.HostedModel, settings: dict[str, Any]
) -> Difference | None:
    """Runs a case of E2D2; returns how it differs from what its decoder did, None if not.

    What the authors encode in a pass of its own is here fed with the pass that follows. The last
    block they encode too, and without a cache all of it in each pass.
    """
    out = dllm.generate(model, [case["prompt"]], **settings)
    fed, unfed, last = [], 0, -1
    steps = [step for step in case["trace"] if step["network"] != "encoder"]
    for step in case["trace"]:
        encoded = len(step.get("encoder_input_ids", ()))
        if step["network"] == "encoder":
            unfed += encoded
            continue
        if step["network"] == "encoder+decoder" and step["block"] != last:
            unfed = encoded
        fed.append(len(step["input_ids"]) + unfed)
        unfed, last = 0, step["block"]
    ours = [sorted(written) for written in out.trace.commits(0)]
    for number, (got, step) in enumerate(zip(ours, steps, strict=False)):
        if got != sorted(map(tuple, step["commits"])):
            return Difference(case["id"], f"pass {number} writes {got}, not {step['commits']}")
    if out.metrics.num_forwards != case["nfe"]:
        return Difference(case["id"], f"{out.metrics.num_forwards} forwards, not {case['nfe']}")
    if list(out.metrics.fed) != fed:
        return Difference(case["id"], f"columns fed {list(out.metrics.fed)} != {fed}")
    length = min(len(case["final"]), len(case["prompt"]) + settings["max_new_tokens"])
    tokens, wanted = list(out.sequences[0])[:length], case["final"][:length]
    return None if tokens == wanted else Difference(case["id"], f"tokens {tokens} != {wanted}")


def goes_on(case: Case, commits: list[list[Any]], count: int) -> bool:
    """Whether diffusers went on after `count` forwards, behind an end token that ends our row.

    It looks for a whole answer only in a step that commits an end token.
    """
    args, start = case["args"], len(case["prompt"])
    if not case["method"].endswith("llada2_pipeline") or args["editing_threshold"]:
        return False
    end = args["eos_token_id"]
    if not args["eos_early_stop"] or end not in case["final"][start:]:
        return False
    last = case["final"].index(end, start)
    return len(commits) > count and all(at > last for step in commits[count:] for at, _ in step)


def final_tokens(case: Case) -> list[int]:
    """Returns the recorded outcome; where it stopped early, masks are filled as ours are."""
    end = case["args"].get("eos_id") or case["args"].get("eos_token_id") or END
    return [end if token == MASK else token for token in case["final"][: num_columns(case)]]


def num_columns(case: Case) -> int:
    """Returns the length that was asked for; diffusers decodes the rest of the last block too."""
    return min(len(case["final"]), len(case["prompt"]) + num_new_tokens(case))


def writes(step: dict[str, Any]) -> list[list[int]]:
    """Returns the (column, token) pairs of a recorded step; what it re-masked gets the mask."""
    remasked = [[place, MASK] for place in step.get("remasked", [])]
    return step["commits"] + step.get("edits", []) + remasked


def end_of_text(case: Case) -> int:
    """Returns the length that is compared commit by commit: what follows was overwritten."""
    final, start = case["final"], len(case["prompt"])
    if not case["args"].get("early_stop") or 127 not in final[start:]:
        return len(final)
    if case["method"] == "localleap":  # fills after the block, not after the end token
        return max(place for place, token in enumerate(final) if token != 127) + 1
    return int(final.index(127, start)) + 1


def idle(step: dict[str, Any], case: Case) -> bool:
    """Whether a recorded forward ran on a block (or canvas) that had no masks left."""
    past = [
        position for before in case["trace"][: step["step"]] for position, _ in before["commits"]
    ]
    if writes(step) or "new_total_len" in step or not past:  # what was cut off is not listed
        return False
    if case["args"].get("editing_threshold"):  # such a forward may find nothing to edit
        return False
    if case["method"] in WHOLE_BLOCKS:
        return False
    new_tokens = num_new_tokens(case)
    block = case["args"].get("block_length", new_tokens)
    start = len(case["prompt"])
    if case["method"] in (
        "llada2_pipeline",
        "diffusers_llada2_pipeline",
    ):  # its blocks are counted from the first token
        past, start = [*range(start), *past], 0
    planted = [start + int(slot) for slot in case["args"].get("constraints", {})]
    begin = start + (past[-1] - start) // block * block
    return set(range(begin, begin + block)) <= set(past + planted)


def num_new_tokens(case: Case) -> int:
    """Returns the length of the generated region."""
    args = case["args"]
    if case["method"] in WHOLE_BLOCKS:
        return len(case["final"]) - len(case["prompt"])
    names = ("gen_length", "max_gen_length", "max_new_tokens", "max_tokens")
    return int(next(args[name] for name in names if name in args))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--models", type=Path, default=here / "models")
    parser.add_argument("--cases", type=Path, default=here / "cases", help="file or folder")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how each case differs")
    options = parser.parse_args()
    files = sorted(options.cases.glob("*.json")) if options.cases.is_dir() else [options.cases]
    results: dict[str, list[Difference | None]] = defaultdict(list)
    for file in files:
        if file.stem in STEPS:
            continue
        recorded = json.loads(file.read_text(encoding="utf-8"))
        for case in recorded["cases"]:
            if case["method"] in NOT_END_TO_END:
                continue
            if not method_of(case):
                results[f"{case['method']} (not implemented)"].append(
                    Difference(case["id"], "not implemented")
                )
                continue
            given = {"eot_id": recorded.get("eot_id"), **case}
            results[f"{file.stem}: {case['method']}"].append(replay(given, options.models))
    num_failed = 0
    for method, found in results.items():
        failed = [d for d in found if d is not None and d.case not in KNOWN_DIFFERENCES]
        known = [d for d in found if d is not None and d.case in KNOWN_DIFFERENCES]
        same = len(found) - len(failed) - len(known)
        print(f"{'FAILED' if failed else 'passed'}  {same}/{len(found)}  {method}")
        for difference in known:
            print(f"    known difference: {difference.case}: {KNOWN_DIFFERENCES[difference.case]}")
        for difference in failed if options.verbose else []:
            print(f"    {difference.case}: {difference.what}")
        num_failed += len(failed)
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
