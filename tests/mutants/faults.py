"""The faults: what is changed in which file, and the tests expected to notice."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support import ROOT

BOUNDARIES = "tests/laws/test_boundaries.py"
FUZZ = "tests/laws/test_fuzz.py::test_laws_hold_for_a_few_random_combinations"
LAWS = "tests/laws/test_laws.py"
ALONE = f"{LAWS}::test_a_row_does_not_depend_on_its_batch"
BASE = "tests/schedulers/test_base.py"
CALLS = "tests/test_generate.py"
WAITING = "tests/decoding/test_batching.py"
VERIFIED = "tests/decoding/speculation/test_verifiers.py"
LINEAR = "tests/decoding/speculation/test_linear.py"
DRAFTED = "tests/models/test_draft_adapter.py"
SUMMARY = "tests/eval/run/test_run.py"
PAIRED = "tests/eval/test_paired.py"
CACHES = "tests/cache/test_base.py"
STREAMING = "tests/cache/test_streaming.py tests/golden/test_logits.py"
WEDLM = "tests/schedulers/test_wedlm.py"
CONTEXT = "tests/schedulers/test_context_filter.py"
LEARNT = "tests/schedulers/test_learn2pd.py"
LISTS = "tests/training/test_lists.py tests/training/test_tiny_corpus.py"
EXISTS = "tests/cache/test_what_exists.py"
GROWN = "tests/training/test_wider.py"
BLOCK_CAUSAL = "tests/cache/test_block_causal.py"
KEPT = "tests/cache/test_kept_plans.py"
ENCODER = "tests/cache/test_encoder.py"
A2D = "tests/models/test_a2d.py"
NEMOTRON = "tests/models/test_nemotron.py"
GEMMA = "tests/models/test_diffusion_gemma.py"
HELD = "tests/constraints/test_decoding.py"
SETS = "tests/constraints/test_engine.py"
JOINT = "tests/constraints/test_joint.py"
HOLES = "tests/infilling/test_laws.py"
SEARCH = "tests/infilling/test_search.py"
ROWS = "tests/decoding/languages/test_row_by_row.py"
ENGINE = "tests/serve/test_engine.py"
TRANSFORMERS = "tests/integrations/test_transformers.py"
TRANSCRIPT = "tests/serve/test_transcript.py"
SGLANG = "tests/integrations/sglang/test_block.py"
RAY = "tests/integrations/test_ray.py"
STARTED = "tests/cli/test_start.py"
ROOM = "tests/models/test_room.py"
CONFIRMED = "tests/tuning/test_confirm.py"
ROUNDED = "tests/models/test_rounded.py"
WIDENED = "tests/models/test_widened.py"


@dataclass(frozen=True)
class Fault:
    """A change that some test must fail for."""

    name: str
    file: str
    old: str  # occurs once in the file
    new: str
    tests: tuple[str, ...]


def occurrences(fault: Fault) -> int:
    """Returns how often the text that a fault changes occurs in its file."""
    return (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)


def in_file(file: str, *faults: tuple[str, str, str, str]) -> list[Fault]:
    """Returns the faults of a file: name, old text, new text, and tests with a space between."""
    return [Fault(name, file, old, new, tuple(tests.split())) for name, old, new, tests in faults]


FAULTS = [
    *in_file(
        "dllm/state/canvas.py",
        (
            "prompt-ends-row",
            "torch.isin(self.tokens, self.ends) & ~self.fixed",
            "torch.isin(self.tokens, self.ends)",
            BOUNDARIES,
        ),
        (
            "block-one-long",
            "between, self.numbers, self.block_start, self.block_end)",
            "between, self.numbers, self.block_start, self.block_end + 1)",
            f"{VERIFIED} {BLOCK_CAUSAL} tests/laws/test_digest.py",
        ),
        (
            "window-is-kept-too-long",
            "between, columns, self.block_start, self.block_end)",
            "between, columns, self.block_start + 1, self.block_end)",
            f"{FUZZ} {ALONE}",
        ),
        (
            "skip-includes-end",
            "masked = masked & (self.ended.int().cumsum(1) == 0)",
            "masked = masked & (self.ended.int().cumsum(1) <= 1)",
            f"{BOUNDARIES} {CALLS} {FUZZ}",
        ),
    ),
    *in_file(
        "dllm/state/stopping.py",
        (
            "truncate-cuts-end",
            "after = (ended.cumsum(1) > ended) & ~canvas.fixed",
            "after = (ended.cumsum(1) >= 1) & ~canvas.fixed",
            f"{CALLS} {FUZZ} tests/golden/test_replay.py",
        ),
        (
            "truncate-after-refresh",
            "after = after & (canvas.step - canvas.entry_step != 1)[:, None]",
            "pass",
            f"tests/golden/test_replay.py {CALLS} tests/cache",
        ),
    ),
    *in_file(
        "dllm/state/writing.py",
        (
            "writes-are-not-counted",
            "    canvas.tokens.scatter_(1, columns, after)\n    canvas.writes += 1\n",
            "    canvas.tokens.scatter_(1, columns, after)\n",
            f"{FUZZ} {ALONE}",
        ),
        (
            "steps-of-all",
            "    canvas.step += active",
            "    canvas.step += 1",
            f"{FUZZ} {ALONE}",
        ),
        (
            "block-step-stands",
            "    canvas.block_step += active\n",
            "    canvas.block_step += 0 * active\n",
            f"tests/golden/test_replay.py {ALONE}",
        ),
        (
            "nan-is-written",
            "chosen = chosen & finite\n",
            "chosen = chosen & True\n",
            CALLS,
        ),
        (
            "cut-was-committed",
            "    canvas.commit_step.masked_fill_(cut, NEVER)\n",
            "",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "dllm/state/progress.py",
        (
            "no-lockstep",
            "moving = moving & (moving | canvas.finished).all()",
            "moving = moving & True",
            f"{ALONE} {LAWS}::test_one_refresh_a_block_and_no_empty_forward {WAITING}",
        ),
        (
            "entry-step-stands",
            "torch.where(moving, canvas.step, canvas.entry_step)",
            "torch.where(moving, canvas.entry_step, canvas.entry_step)",
            f"{FUZZ} tests/cache",
        ),
        (
            "block-step-goes-on",
            "torch.where(moving, 0, canvas.block_step)",
            "torch.where(moving, canvas.block_step, canvas.block_step)",
            f"tests/golden/test_replay.py {FUZZ}",
        ),
    ),
    *in_file(
        "dllm/state/progress.py",
        (
            "stop-before-text-is-there",
            "return ending & before & some",
            "return ending & some",
            f"{CALLS} {FUZZ} tests/golden/test_replay.py",
        ),
        (
            "held-rows-end",
            "some = some | canvas.held",
            "some = some | False",
            "tests/schedulers/test_token_editing.py",
        ),
        (
            "finished-rows-count",
            "going = [row for row, done in enumerate(finished) if not done]",
            "going = list(range(len(finished)))",
            f"{FUZZ} {CACHES} {ALONE} {WAITING}",
        ),
    ),
    *in_file(
        "dllm/state/candidates.py",
        (
            "top-k-tie",
            "shaped.masked_fill(shaped < smallest",
            "shaped.masked_fill(shaped <= smallest",
            BOUNDARIES,
        ),
        (
            "temperature-twice",
            "logits / self.temperature if",
            "logits / self.temperature**2 if",
            CALLS,
        ),
        (
            "noise-forgotten",
            "drawn = shaped.double() - torch.log(-torch.log(uniform))",
            "drawn = shaped.double()",
            f"{CALLS} {BOUNDARIES}",
        ),
        (
            "deferred-kept",
            "scored = without(read, self.deferred_token_ids)",
            "scored = read",
            BOUNDARIES,
        ),
        (
            "confidence-of-wrong",
            'read = shaped if self.confidence == "tempered" else wide',
            "read = wide",
            "tests/state/test_candidates.py tests/golden/test_replay.py",
        ),
    ),
    *in_file(
        "dllm/state/noise.py",
        (
            "noise-without-column",
            "return _mix(row + (columns + 1) * _GOLDEN_GAMMA)",
            "return _mix(row + 0 * columns)",
            f"tests/state/test_noise.py {BOUNDARIES} {CALLS}",
        ),
        (
            "noise-without-step",
            "row = _mix(_mix(self.seeds)[:, None] + (step + 1) * _GOLDEN_GAMMA)",
            "row = _mix(_mix(self.seeds)[:, None] + 0 * step)",
            f"tests/state/test_noise.py {CALLS} tests/laws/test_digest.py",
        ),
    ),
    *in_file(
        "dllm/state/variants.py",
        (
            "last-variant-of-ties",
            "score.argmax(1), 0)",
            "score.shape[1] - 1 - score.flip(1).argmax(1), 0)",
            BOUNDARIES,
        ),
        (
            "invalid-variants-win",
            "self.valid & self.needed[:, None] & active[:, None]",
            "self.needed[:, None] & active[:, None]",
            BOUNDARIES,
        ),
        (
            "drafts-count-one-more",
            "took[:, None].long())",
            "took[:, None].long() * 2)",
            VERIFIED,
        ),
        (
            "any-variant-matches",
            "same = (variants == tokens[:, None]).all(-1) & later",
            "same = (variants == tokens[:, None]).any(-1) & later",
            VERIFIED,
        ),
    ),
    *in_file(
        "dllm/decoding/batching.py",
        (
            "seats-keep-noise",
            "        self.noise.seeds.index_copy_(0, seats, self.all_noise.seeds[rows])\n",
            "",
            WAITING,
        ),
        (
            "waiting-backwards",
            "self.waiting.popleft() for",
            "self.waiting.pop() for",
            WAITING,
        ),
        (
            "seats-that-went-are-not-filled",
            "        self._taken = self._taken or left is not progress\n",
            "",
            "tests/decoding/test_seats.py",
        ),
        (
            "moved-rows-take-other-noise",
            "        self.noise.seeds = self.noise.seeds[kept]\n",
            "        self.noise.seeds = self.noise.seeds[: len(kept)]\n",
            "tests/decoding/test_seats.py",
        ),
    ),
    *in_file(
        "dllm/state/store.py",
        (
            "moved-rows-leave-their-keys",
            "for held in self._by_row() if moved else ():",
            "for held in ():",
            "tests/state/test_store.py",
        ),
    ),
    *in_file(
        "dllm/state/rounded_store.py",
        (
            "moved-keys-leave-their-scales",
            "return self.keys, self.values, self.key_scales, self.value_scales",
            "return self.keys, self.values",
            "tests/models/test_rounded_keys.py",
        ),
        (
            "one-scale-for-all-heads",
            "scale = wide.abs().amax(-1) / _MOST",
            "scale = wide.abs().amax(-1) * 0 + wide.abs().amax() / _MOST",
            "tests/models/test_rounded_keys.py",
        ),
    ),
    *in_file(
        "dllm/decoding/seats.py",
        (
            "few-problems-of-a-run-keep-their-seats",
            "few = seating.watched and layout",
            "few = layout",
            "tests/eval/run/test_padding.py",
        ),
    ),
    *in_file(
        "dllm/decoding/room.py",
        (
            "rows-of-any-length-beside-each-other",
            "return few and total >= (1 - MOST_PADDING) * rows * longest",
            "return few",
            "tests/decoding/test_room.py",
        ),
    ),
    *in_file(
        "dllm/decoding/passes.py",
        (
            "narrow-loses-columns",
            "count = -(-progress.num_open // LOGIT_GROUP) * LOGIT_GROUP",
            "count = max(progress.num_open // LOGIT_GROUP, 1) * LOGIT_GROUP",
            f"{FUZZ} {ALONE} tests/golden/test_replay.py {BOUNDARIES}",
        ),
    ),
    *in_file(
        "dllm/layout.py",
        (
            "one-seed-for-all",
            "drawn = [seed + row for row in range(num_rows)]",
            "drawn = [seed for row in range(num_rows)]",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "dllm/cli/prompt_file.py",
        (
            "settings-of-a-file-are-described-for-each-line",
            'if line["run"] != run:',
            'if line["run"] != name_of(job.describe()):',
            "tests/cli/test_prompt_file.py",
        ),
    ),
    *in_file(
        "dllm/prompts.py",
        (
            "prompts-of-a-list-stay-lists",
            'replace(row, prompt=array("i", row.prompt))',
            "replace(row, prompt=list(row.prompt))",
            "tests/test_prompts.py",
        ),
        (
            "each-prompt-has-slots-of-its-own",
            "cache(partial(_open_slots, model, settings))",
            "partial(_open_slots, model, settings)",
            "tests/test_prompts.py",
        ),
    ),
    *in_file(
        "dllm/output.py",
        (
            "given-end-cuts",
            "if slot and token in layout.eos_token_ids",
            "if token in layout.eos_token_ids",
            BOUNDARIES,
        ),
        (
            "given-text-counts",
            "valid = sum(slot and token != layout.mask_token_id",
            "valid = sum(token != layout.mask_token_id",
            BOUNDARIES,
        ),
        (
            "empty-answer-not-ended",
            '"eos" if ends else "length"',
            '"eos" if valid and ends else "length"',
            BOUNDARIES,
        ),
        (
            "raw-tokens-of-all",
            "raw_tokens=int((trace.commit_step[row] != NEVER).sum())",
            "raw_tokens=int((trace.commit_step[row] != NEVER - 1).sum())",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "dllm/metrics.py",
        (
            "prefill-is-all",
            "first = self.first_pass or end",
            "first = end",
            BOUNDARIES,
        ),
        (
            "tree-rows",
            "(rows * one.num_canvases, rows",
            "(rows, rows",
            BOUNDARIES,
        ),
        (
            "tree-columns",
            "self._fed.append(one.num_fed // one.num_canvases)",
            "self._fed.append(one.num_fed)",
            BOUNDARIES,
        ),
        (
            "passes-summed-twice",
            "        self.passes.clear()\n",
            "",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "dllm/models/wrap.py",
        (
            "guidance-halves",
            "without = logits.chunk(2)",
            "without = logits.chunk(2)[::-1]",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "schedulers/base.py",
        (
            "revised-too-long",
            "early = view.block_step < self",
            "early = view.block_step <= self",
            BOUNDARIES,
        ),
        (
            "no-column-forced",
            "commit = commit | (self._best(candidates, view) > goes_on)",
            "commit = commit | False",
            BASE,
        ),
        (
            "unmasked-committed",
            "commit = decision.commit & view.masked",
            "commit = decision.commit",
            BASE,
        ),
    ),
    *in_file(
        "schedulers/threshold.py",
        (
            "threshold-tie",
            "candidates.confidence >= self",
            "candidates.confidence > self",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "schedulers/entropy_bound.py",
        (
            "entropy-bound-tie",
            ">= -self.bound",
            "> -self.bound",
            BOUNDARIES,
        ),
        (
            "entropy-bound-with-largest",
            "torch.minimum(entropy[:, 1:], largest)",
            "entropy[:, 1:]",
            "tests/schedulers/test_entropy_bound.py",
        ),
    ),
    *in_file(
        "schedulers/factor.py",
        (
            "factor-tie",
            "passed = (ranked >= 1",
            "passed = (ranked > 1",
            BOUNDARIES,
        ),
        (
            "factor-one-less",
            "self.factor / (place + 2)",
            "self.factor / (place + 1)",
            BASE,
        ),
    ),
    *in_file(
        "schedulers/fixed_quota.py",
        (
            "plan-redrawn",
            "left, start = view.left, torch.zeros_like(view.step)",
            "left, start = view.left, view.step",
            BOUNDARIES,
        ),
        (
            "quota-rounds-down",
            "return (masks + left - 1) // left",
            "return (masks // left).clamp(min=1)",
            BASE,
        ),
    ),
    *in_file(
        "schedulers/dream.py",
        (
            "dream-rounds-up",
            ".float() * fraction).long()",
            ".float() * fraction).ceil().long()",
            BOUNDARIES,
        ),
        (
            "dream-grid-of-blocks",
            "_time_grids(steps, self.epsilon, device)[view.num_blocks - 1]",
            "_time_grids(steps, self.epsilon, device)[0 * view.num_blocks]",
            f"tests/golden/test_replay.py {BASE} tests/laws/test_digest.py",
        ),
    ),
    *in_file(
        "schedulers/localleap.py",
        (
            "localleap-radius",
            "2 * radius + 1, 1, radius)",
            "2 * radius + 3, 1, radius + 1)",
            BOUNDARIES,
        ),
        (
            "localleap-tie",
            "(confidence >= self.threshold) & view.masked",
            "(confidence > self.threshold) & view.masked",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "schedulers/quota_threshold.py",
        (
            "quota-threshold-tie",
            "passes = candidates.confidence >= self.threshold",
            "passes = candidates.confidence > self.threshold",
            BOUNDARIES,
        ),
        (
            "quota-of-masks",
            "share_of_block(steps, view.block_step, view.layout.block_length)",
            "share_of_block(steps, view.block_step, 1)",
            "tests/schedulers/test_quotas.py",
        ),
    ),
    *in_file(
        "schedulers/saber.py",
        (
            "taken-back-are-forgotten",
            'surest = torch.where(commit, sure, state["surest"])',
            'surest = torch.where(commit & ~again, sure, state["surest"])',
            "tests/schedulers/test_saber.py",
        ),
        (
            "all-may-go",
            ".minimum(chosen - 1)",
            ".minimum(chosen)",
            "tests/schedulers/test_saber.py",
        ),
    ),
    *in_file(
        "schedulers/sliding.py",
        (
            "end-stands",
            "block_end=self._end(left, view)[:, 0]",
            "block_end=self._end(left | decision.commit, view)[:, 0]",
            "tests/schedulers/test_sliding.py",
        ),
    ),
    *in_file(
        "schedulers/dynamic_dllm.py",
        (
            "compared-with-nothing",
            "compared = seen.gather(1, slot) & (slot < other)",
            "compared = slot < other",
            "tests/schedulers/test_dynamic_dllm.py",
        ),
        (
            "masks-of-all-blocks-move-it",
            "masks = view.masked & view.block & compared",
            "masks = view.masked & compared",
            "tests/schedulers/test_dynamic_dllm.py",
        ),
        (
            "best-waits-for-its-threshold",
            "commit = commit | best(sure, view.masked & view.block)",
            "commit = commit | best(sure, view.left & ~commit.any(1, True))",
            "tests/schedulers/test_dynamic_dllm.py",
        ),
    ),
    *in_file(
        "cache/dynamic_dllm.py",
        (
            "window-hangs-over",
            "first = first.minimum(torch.maximum(end - self._width, start))[:, None]",
            "first = first[:, None]",
            "tests/cache/test_dynamic_dllm.py",
        ),
        (
            "first-layer-changes-most",
            "first = torch.zeros(num_rows, dtype",
            "first = torch.ones(num_rows, dtype",
            "tests/cache/test_dynamic_dllm.py",
        ),
        (
            "window-in-the-budget-too",
            "count=count.minimum((answer & ~near).sum(1, keepdim=True)),",
            "count=count.minimum(answer.sum(1, keepdim=True)) - near.sum(1, keepdim=True),",
            "tests/cache/test_dynamic_dllm.py",
        ),
    ),
    *in_file(
        "cache/free.py",
        (
            "first-pass-like-the-others",
            "torch.where(canvas.step > 0, canvas.block_start - spec.logit_shift, 0)",
            "canvas.block_start - spec.logit_shift",
            "tests/cache/test_free.py",
        ),
        (
            "block-is-fed-without-its-lead",
            "canvas.block_start - spec.logit_shift, 0)",
            "canvas.block_start, 0)",
            "tests/cache/test_free.py",
        ),
    ),
    *in_file(
        "cache/spa.py",
        (
            "prompt-alone-computed",
            "answer_now = all_now or progress",
            "answer_now = progress",
            "tests/cache/test_spa.py",
        ),
    ),
    *in_file(
        "dllm/models/singular_reuse.py",
        (
            "lowest-share-behind-the-peak-too",
            "return float(self.most * self.last ** (beyond / (1 - self.place)) ** 2)",
            "return max(self.most * self.last ** (beyond / (1 - self.place)) ** 2, self.least)",
            "tests/cache/test_spa.py",
        ),
        (
            "smallest-directions",
            "(made @ vectors[:, -rank:])",
            "(made @ vectors[:, :rank])",
            "tests/cache/test_spa.py",
        ),
        (
            "keys-of-others-stay",
            "layer.memory(at, real).write(rotated, values)",
            "layer.swapped(layer.slots(at, real), values)",
            "tests/cache/test_spa.py",
        ),
    ),
    *in_file(
        "cache/dsb.py",
        (
            "refresh-does-not-count",
            "(done >= canvas.cache_state.step[:, None])",
            "(done > canvas.cache_state.step[:, None])",
            "tests/cache/test_dsb.py",
        ),
        (
            "front-stands",
            "advance.clamp(min=self.before)",
            "self.before",
            "tests/cache/test_dsb.py",
        ),
    ),
    *in_file(
        "cache/pruned_suffix.py",
        (
            "pruned-columns-are-seen",
            "chosen_columns(fed, canvas, progress, spec, seen)",
            "chosen_columns(fed, canvas, progress, spec)",
            "tests/cache/test_pruned_suffix.py",
        ),
    ),
    *in_file(
        "schedulers/info_gain.py",
        (
            "column-costs-nothing",
            "return -each[:, 0] - nats",
            "return -nats",
            "tests/schedulers/test_info_gain.py",
        ),
        (
            "twice-drawn-may-win",
            "valid=~again.tril(-1).any(2),",
            "valid=~again.triu(1).any(2),",
            "tests/schedulers/test_info_gain.py",
        ),
    ),
    *in_file(
        "eval/run/vote.py",
        (
            "no-answer-votes",
            "Counter(answer for answer in stated if answer is not None)",
            "Counter(stated)",
            "tests/eval/run/test_vote.py",
        ),
        (
            "only-the-winner-is-paid",
            '_SUMS = ("forwards", "row_forwards", "raw_tokens"',
            '_SUMS = ("raw_tokens"',
            "tests/eval/run/test_vote.py",
        ),
    ),
    *in_file(
        "schedulers/gap.py",
        (
            "all-ends-count",
            "counted = ends & (from_right <= _CHECKED)",
            "counted = ends",
            "tests/schedulers/test_growing.py",
        ),
        (
            "span-begins-at-the-mask",
            'whole = start + (first - start).div(span, rounding_mode="floor") * span',
            "whole = first",
            "tests/schedulers/test_growing.py",
        ),
    ),
    *in_file(
        "schedulers/daedal.py",
        (
            "committed-ones-open",
            " & ~chosen\n",
            "\n",
            "tests/schedulers/test_growing.py",
        ),
    ),
    *in_file(
        "schedulers/pc_sampler.py",
        (
            "no-cap",
            ".clamp(max=self.cap)",
            "",
            "tests/schedulers/test_pc_sampler.py",
        ),
    ),
    *in_file(
        "schedulers/lopa.py",
        (
            "lopa-tie",
            "passed = (candidates.confidence > self.threshold)",
            "passed = (candidates.confidence >= self.threshold)",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "schedulers/dimple.py",
        (
            "dimple-tie",
            "passed = (candidates.confidence > self.threshold)",
            "passed = (candidates.confidence >= self.threshold)",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "schedulers/blocks_ahead.py",
        (
            "blocks-opened-too-far",
            "opened = (before >= add_threshold)",
            "opened = (before < add_threshold)",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "cache/base.py",
        (
            "lockstep-waits-for-all",
            "not self.lockstep or progress.entered or not progress.unfinished",
            "not self.lockstep or not progress.unfinished",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "cache/dual.py",
        (
            "dual-without-lead",
            'lead = spec.logit_shift if self.first_token == "feed" else 0',
            "lead = 0",
            CACHES,
        ),
    ),
    *in_file(
        "cache/prefix.py",
        (
            "prefix-to-block-end",
            "width = progress.remaining + lead",
            "width = canvas.layout.block_length + lead",
            f"{CACHES} {ALONE}",
        ),
    ),
    *in_file(
        "cache/dkv.py",
        (
            "dkv-not-delayed",
            "decoded = ~(canvas.masked | (late > canvas.fixed))",
            "decoded = ~canvas.masked",
            "tests/golden/test_replay.py tests/cache",
        ),
    ),
    *in_file(
        "dllm/models/encoder_keys.py",
        ("window-one-short", "columns[..., None] - count", "columns[..., None] - count + 1", GEMMA),
        ("padding-is-kept", "torch.where(kept, columns % count, count)", "columns % count", GEMMA),
        (
            "block-sees-padding",
            "self._held(kind, columns[:, 0]) >= 0",
            "self._held(kind, columns[:, 0]) >= -9",
            GEMMA,
        ),
    ),
    *in_file(
        "dllm/decoding/uniform.py",
        (
            "conditions-a-new-block",
            "self.conditioning, ~view.fresh",
            "self.conditioning, view.fresh | True",
            GEMMA,
        ),
        (
            "text-read-again",
            "(canvas.numbers >= canvas.clean[:, None])",
            "(canvas.numbers >= 0)",
            GEMMA,
        ),
    ),
    *in_file(
        "dllm/decoding/prompt_memory.py",
        ("memory-cut-otherwise", "* (others == lack)", "* (others >= 0)", A2D),
        ("memory-beyond-a-block", "(best + lacks) // block * block", "best + lacks", A2D),
    ),
    *in_file(
        "cache/block_causal.py",
        (
            "stored-before-final",
            "_least(stored, row.start - spec.logit_shift)",
            "row.start - spec.logit_shift",
            BLOCK_CAUSAL,
        ),
        (
            "keys-of-other-blocks",
            "lack = lacking(prompt, block)",
            "lack = prompt * 0",
            A2D,
        ),
        (
            "parts-across-blocks",
            "starts = _block_start(canvas.clean, canvas.prompt_length, spec)",
            "starts = canvas.clean",
            A2D,
        ),
        ("seed-from-far", "sum(1, keepdim=True) - 1", "sum(1, keepdim=True) - 2", NEMOTRON),
        ("nothing-fed-to-seed", "_least(start, row.start - 1)", "start", NEMOTRON),
        (
            "prefill-too-long",
            "for read in range(0, longest - self.prefill_chunk, self.prefill_chunk)",
            "for read in range(0, longest + self.prefill_chunk, self.prefill_chunk)",
            BLOCK_CAUSAL,
        ),
        (
            "forces-beyond-first",
            "eligible=first | ~forced[:, None], forced=forced",
            "eligible=None, forced=forced",
            BLOCK_CAUSAL,
        ),
        (
            "subclass-counted-otherwise",
            "return type(self).feeds is BlockStoreCache.feeds",
            "return True",
            KEPT,
        ),
        ("nobody-begins", "if not progress.entered:", "if True:", BLOCK_CAUSAL),
        (
            "keys-behind-the-end",
            "num_keys=end, attention_mask=mask[..., :end])",
            "num_keys=end + 1, attention_mask=mask[..., : end + 1])",
            EXISTS,
        ),
        (
            "rows-without-a-mask",
            "if canvas.layout.num_rows == 1 and progress.fed_end:",
            "if progress.fed_end:",
            EXISTS,
        ),
        (
            "parts-without-a-mask",
            "whole = canvas.layout.num_rows == 1 and self.prefill_chunk == unit(spec)",
            "whole = canvas.layout.num_rows == 1",
            EXISTS,
        ),
    ),
    *in_file(
        "cache/base.py",
        *(
            (f"plan-outlives-{name}", f"            canvas.{name},\n", "", KEPT)
            for name in (
                *("first_block", "block_start", "length", "prompt_length"),
                *("clean", "finished"),
            )
        ),
        ("plan-outlives-its-width", "            progress.num_fed,\n", "", KEPT),
    ),
    *in_file(
        "dllm/state/standing.py",
        (
            "moving-rows-are-not-new",
            'came = map(or_, came, figures["moving"])',
            'came = map(and_, came, figures["moving"])',
            KEPT,
        ),
        ("counted-once", "!= (columns, window)", "!= (self._last[0], window)", KEPT),
        ("full-begins-are-forced", "and_, came, figures", "or_, came, figures", KEPT),
    ),
    *in_file(
        "dllm/state/progress.py",
        ("ends-stay-as-they-were", "canvas.finished, done)", "canvas.finished, 0)", KEPT),
    ),
    *in_file(
        "cache/sub_block.py",
        (
            "block-over-stale-keys",
            "((first == entered) & (start > 0)).long()",
            "0",
            f"{BLOCK_CAUSAL} tests/golden/test_blockwise.py",
        ),
    ),
    *in_file(
        "cache/streaming.py",
        ("stored-while-a-mask", "unsure = masked | late", "unsure = masked", STREAMING),
        (
            "given-text-unfed",
            "(~masked | (columns < end[:, None]))",
            "(columns < end[:, None])",
            STREAMING,
        ),
        ("prompt-unread", "canvas.step == 0", "canvas.step < 0", STREAMING),
    ),
    *in_file(
        "cache/passes.py",
        ("keys-counted-from-0", "keys + lack[..., None]", "keys + 0 * lack[..., None]", A2D),
        ("masks-see-left", "token | before, token", "before, token", STREAMING),
        ("tokens-see-masks", "token & before)", "before)", STREAMING),
    ),
    *in_file(
        "schedulers/wedlm.py",
        ("window-stays", "torch.where(first > start, first, end)", "end", WEDLM),
        ("threshold-included", "(unsure < self.threshold)", "(unsure <= self.threshold)", WEDLM),
        ("distance-from-block", "view.masked.int().argmax(", "view.block.int().argmax(", WEDLM),
    ),
    *in_file(
        "dllm/decoding/speculation/passes.py",
        (
            "drafts-beyond-block",
            "return canvas.active & ~canvas.broken & begun.same(canvas)",
            "return canvas.active & ~canvas.broken",
            VERIFIED,
        ),
        (
            "sampled-drafts-known",
            "if step.sampling.temperature > 0 or",
            "if step.sampling.temperature < 0 or",
            VERIFIED,
        ),
        (
            "guard-off",
            "near = (confidence[:, :, None] - confidence[:, None]).abs() < guard",
            "near = (confidence[:, :, None] - confidence[:, None]).abs() < 0",
            "tests/decoding/speculation/test_guard.py",
        ),
    ),
    *in_file(
        "dllm/decoding/speculation/linear.py",
        (
            "drafts-unread",
            "agreed = rows.drafted & finite & (candidates.token == tokens.gather(1, columns))",
            "agreed = rows.drafted & finite",
            LINEAR,
        ),
        (
            "text-behind-an-end",
            "commit = commit & (ended == 0)",
            "commit = commit & (ended >= 0)",
            LINEAR,
        ),
        (
            "stored-one-too-far",
            "stored = torch.minimum(columns[:, 0] + passed.sum(1), ",
            "stored = torch.minimum(columns[:, 0] + passed.sum(1) + 1, 1 + ",
            LINEAR,
        ),
        (
            "noise-of-the-first",
            "return self.canvas.step[:, None] + before",
            "return self.canvas.step[:, None] + 0 * before",
            LINEAR,
        ),
    ),
    *in_file(
        "dllm/models/layers.py",
        (
            "adapter-in-every-pass",
            "if fed.adapted and self.draft is not None:",
            "if self.draft is not None:",
            DRAFTED,
        ),
    ),
    *in_file(
        "eval/run/summary.py",
        (
            "accuracy-of-all",
            "accuracy=ratio(correct, scored)",
            "accuracy=ratio(correct, count)",
            BOUNDARIES,
        ),
        (
            "interval-of-samples",
            "low, high = wilson(correct * trials / scored, trials)",
            "low, high = wilson(correct, scored)",
            f"{SUMMARY} tests/eval/run/test_samples.py",
        ),
        (
            "wilson-is-wald",
            "centre = (successes + z2 / 2) / (trials + z2)",
            "centre = successes / trials",
            SUMMARY,
        ),
        (
            "pass-at-k",
            "range(samples - correct + 1, samples + 1)",
            "range(samples - correct + 1, samples)",
            "tests/eval/run/test_samples.py",
        ),
    ),
    *in_file(
        "eval/compare/paired.py",
        (
            "mcnemar-tail",
            "for k in range(fewer + 1)",
            "for k in range(fewer)",
            PAIRED,
        ),
        (
            "mcnemar-correction",
            "abs(self.only_first - self.only_second) - 1, 0)",
            "abs(self.only_first - self.only_second), 0)",
            PAIRED,
        ),
        (
            "mcnemar-above-one",
            "return min(1.0, 2 * tail",
            "return (2 * tail",
            PAIRED,
        ),
        (
            "wins-swapped",
            "wins = [a.id for a, b in common if a.correct and not b.correct]",
            "wins = [a.id for a, b in common if b.correct]",
            PAIRED,
        ),
    ),
    *in_file(
        "cache/encoder.py",
        (
            "encodes-open-blocks",
            "(canvas.numbers < canvas.block_start[:, None])\n        return new",
            "(canvas.numbers <= canvas.block_start[:, None])\n        return new",
            ENCODER,
        ),
        (
            "encodes-everything-again",
            "        start = canvas.clean\n        if",
            "        start = torch.zeros_like(canvas.clean)\n        if",
            ENCODER,
        ),
    ),
    *in_file(
        "cache/passes.py",
        (
            "encoder-sees-earlier-blocks-alone",
            "(keys[:, None] <= asks)",
            "(keys[:, None] < asks.clamp(min=1))",
            "tests/golden/test_replay.py",
        ),
        (
            "decoder-sees-its-own-block-encoded",
            "canvas.numbers[:num_keys] < canvas.block_start[:, None]",
            "canvas.numbers[:num_keys] < canvas.block_end[:, None]",
            f"{ENCODER} tests/golden/test_replay.py",
        ),
        (
            "blocks-begun-are-one",
            "begun = (canvas.block_entry >= 0).cumsum(1)",
            "begun = (canvas.block_entry >= 0).cumsum(1).clamp(max=1)",
            f"{ENCODER} tests/golden/test_replay.py",
        ),
    ),
    *in_file(
        "dllm/models/encoder_decoder.py",
        (
            "decoder-reads-the-first-layers",
            "range(len(layers) - self._decoder.num_layers, len(layers))",
            "range(self._decoder.num_layers)",
            ENCODER,
        ),
        (
            "context-is-not-normed",
            "x = self.norm(x)\n            if",
            "pass\n            if",
            ENCODER,
        ),
    ),
    *in_file(
        "schedulers/predict_and_noise.py",
        (
            "masks-as-many-again",
            "torch.minimum(kept, left - 1)",
            "torch.minimum(kept, left)",
            "tests/schedulers/test_base.py",
        ),
    ),
    *in_file(
        "dllm/decoding/languages/constrained.py",
        ("commits-may-clash", "    if not most:", "    if True:", f"{JOINT} {HELD}"),
        (
            "entry-of-the-first-block",
            "        elif not progress.entered:\n            return",
            "        else:\n            return",
            HELD,
        ),
        ("nan-where-nothing-may-come", "wide.amax(-1).isnan()", "wide.amax(-1).isinf()", HELD),
        (
            "forced-counts-all",
            "(compelled & ~commit).sum(1)",
            "(compelled | commit).sum(1)",
            HELD,
        ),
        (
            "seats-keep-their-languages",
            "if prompts != self._seated:",
            "if self._tables is None:",
            HELD,
        ),
    ),
    *in_file(
        "constraints/engine.py",
        (
            "text-beyond-the-row",
            ".clamp(min=0).minimum(self._tail_last)",
            ".clamp(min=0, max=0)",
            f"{SETS} {HELD}",
        ),
    ),
    *in_file(
        "constraints/host.py",
        (
            "text-beyond-the-row-of-a-host",
            "np.maximum(lines.stop - columns[:, -1] - 1, 0)",
            "np.zeros_like(lines.stop)",
            HELD,
        ),
        (
            "mask-leaves-the-softmax",
            "into[..., keep] = kept",
            "into[..., keep] = -np.inf",
            HELD,
        ),
        ("columns-that-nobody-asks-about", "inside & asked.numpy()", "inside", SETS),
        ("changes-that-end-early", "places[-1] + 1", "places[-1]", f"{SETS} {HELD}"),
    ),
    *in_file(
        "constraints/known.py",
        (
            "one-way-alone",
            "bundles = np.bitwise_or.reduceat",
            "bundles = np.bitwise_and.reduceat",
            f"{SETS} {HELD}",
        ),
        ("words-too-narrow", "8 * size >= len(sets)", "16 * size >= len(sets)", SETS),
    ),
    *in_file(
        "eval/tasks/smiles.py",
        (
            "molecules-as-texts",
            'details["molecule"] = details["valid"] and',
            'details["molecule"] = details["exact"] and',
            "tests/eval/tasks/test_smiles.py",
        ),
    ),
    *in_file(
        "dllm/infilling/cal.py",
        (
            "equal-is-better",
            "if scores[length] > scores[best]:",
            "if scores[length] >= scores[best]:",
            "tests/infilling/test_cal.py",
        ),
        (
            "one-count-for-both-ways",
            "if worse == PATIENCE:",
            "if worse > PATIENCE:",
            "tests/infilling/test_cal.py",
        ),
        (
            "confidence-is-not-calibrated",
            "one / bias(n)",
            "one",
            "tests/infilling/test_cal.py",
        ),
    ),
    *in_file(
        "eval/tasks/compiled.py",
        (
            "leaving-early-is-right",
            "void __wrap_{name}(int) {{ __real__exit({_LEFT}); }}",
            "void __wrap_{name}(int) {{ __real__exit(0); }}",
            "tests/eval/tasks/test_cpp_infilling.py",
        ),
        (
            "the-judge-can-be-looked-at",
            "ctypes.CDLL(None).prctl(4, 0)",
            "ctypes.CDLL(None).prctl(4, 1)",
            "tests/eval/tasks/test_cpp_infilling.py",
        ),
    ),
    *in_file(
        "constraints/bound.py",
        (
            "what-may-not-come-is-added",
            "(classes & ~base, base & ~classes)",
            "(base & ~classes, classes & ~base)",
            SETS,
        ),
    ),
    *in_file(
        "dllm/state/softmax.py",
        (
            "top-p-tie",
            "ordered.masked_fill(before > top_p",
            "ordered.masked_fill(before >= top_p",
            BOUNDARIES,
        ),
        (
            "mask-proposed",
            "return token if but else torch.where(token == 0, 1, token)",
            "return token",
            "tests/state/test_candidates.py",
        ),
        (
            "mask-not-left-out",
            "without(logits, (but,)).argmax(-1)",
            "logits.argmax(-1)",
            "tests/state/test_candidates.py",
        ),
    ),
    *in_file(
        "dllm/kernels/triton_statistics.py",
        (
            "noise-of-the-token-before",
            "(at + 1).to(tl.uint64)",
            "at.to(tl.uint64)",
            "tests/kernels/test_drawn_tokens.py",
        ),
        (
            "drawn-logit-of-another",
            "tl.where(token == chosen, own, low)",
            "tl.where(token >= 0, own, low)",
            "tests/kernels/test_drawn_tokens.py",
        ),
    ),
    *in_file(
        "dllm/state/plan.py",
        (
            "excess-keys-are-seen",
            "hidden = mask.new_zeros(",
            "hidden = mask.new_ones(",
            "tests/models/test_captured.py",
        ),
    ),
    *in_file(
        "dllm/models/layers.py",
        (
            "mask-of-another-column-in-groups",
            "mask.repeat_interleave(groups, 1)",
            "mask.repeat(1, groups, 1)",
            "tests/kernels/test_groups.py",
        ),
    ),
    *in_file(
        "cache/block_causal.py",
        (
            "one-mask-for-several-blocks",
            "progress.num_fed > unit(spec)",
            "progress.num_fed > 2 * unit(spec)",
            "tests/cache/test_one_mask.py",
        ),
    ),
    *in_file(
        "dllm/kernels/residual_norm.py",
        (
            "norm-rounded-once",
            "        if not multiply_first:\n",
            "        if multiply_first:\n",
            "tests/kernels/test_between_products.py",
        ),
    ),
    *in_file(
        "dllm/kernels/rotated_write.py",
        (
            "key-to-the-slot-of-another-row",
            "(token // num_fed) * num_stored + column",
            "column",
            "tests/kernels/test_between_products.py",
        ),
    ),
    *in_file(
        "constraints/viterbi.py",
        ("worst-text", 'ways, "amax")', 'ways, "amin")', JOINT),
    ),
    *in_file(
        "dllm/state/candidates.py",
        (
            "filters-leave-the-mask",
            "return shaped.scatter(-1, best, heated.gather(-1, best))",
            "return shaped",
            "tests/state/test_candidates.py",
        ),
    ),
    *in_file(
        "dllm/models/layer_policies.py",
        (
            "rounding-counts-as-change",
            "moved < (_ROUNDING * torch.finfo(moved.dtype).eps) ** 2",
            "moved < 0",
            "tests/laws/test_fuzz.py::test_columns_that_rounding_alone_moves_are_not_preferred",
        ),
    ),
    *in_file(
        "dllm/decoding/comparing.py",
        (
            "wrong-variant-goes-on",
            "return logits[best]",
            "return logits[rows * count]",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "dllm/decoding/languages/several.py",
        ("first-hole-alone", "for part in self.parts]", "for part in self.parts[:1]]", HOLES),
    ),
    *in_file(
        "dllm/infilling/score.py",
        ("score-sees-what-it-scores", "        masked[number, columns] = True", "", SEARCH),
        ("score-of-a-sum", "[whole / count for", "[whole for", SEARCH),
    ),
    *in_file(
        "dllm/infilling/search.py",
        ("the-last-row-wins", "max(rows, key=", "min(rows, key=", SEARCH),
    ),
    *in_file(
        "dllm/decoding/languages/one_row.py",
        ("block-left-without-room", "stuck or not _may_go_on(turn, outcome)", "stuck", ROWS),
        ("refused-token-stays", "    outcome.tokens[column] = before\n", "", ROWS),
    ),
    *in_file(
        "dllm/decoding/batching.py",
        (
            "entering-row-has-no-seed",
            "torch.tensor([row.seed for",
            "torch.tensor([0 for",
            ENGINE,
        ),
    ),
    *in_file(
        "dllm/serve/wave.py",
        ("who-left-stays", "            release_rows(", "            (lambda *_: None)(", ENGINE),
    ),
    *in_file(
        "dllm/serve/transcript.py",
        ("half-a-character", ".rstrip(_PART)", "", TRANSCRIPT),
        (
            "stop-string-begins",
            "        return text[: len(text) - longest] if longest else text",
            "        return text",
            TRANSCRIPT,
        ),
    ),
    *in_file(
        "dllm/serve/engine.py",
        ("broken-take-others-along", "if job not in broken]", "if job in broken]", ENGINE),
    ),
    *in_file(
        "dllm/integrations/transformers/streaming.py",
        ("told-twice", "            self._num_told = len(tokens)\n", "", TRANSFORMERS),
        (
            "draft-of-what-was-told",
            "[columns][shown][self._num_told :]",
            "[columns][shown]",
            TRANSFORMERS,
        ),
    ),
    *in_file(
        "dllm/integrations/transformers/asked.py",
        ("sampled-greedily", '{"temperature": 1.0, **found}', "found", TRANSFORMERS),
    ),
    *in_file(
        "dllm/integrations/sglang/block.py",
        ("block-is-done-unseen", "~left & (after == tokens).all(1)", "~left", SGLANG),
        ("block-takes-no-hold", "masked.any(1) | blocks.held", "masked.any(1)", SGLANG),
    ),
    *in_file(
        "dllm/integrations/sglang/__init__.py",
        (
            "mask-of-the-prompt-is-open",
            "fixed = forward_batch.dllm_prompt_mask",
            "fixed = None",
            SGLANG,
        ),
    ),
    *in_file(
        "dllm/integrations/ray.py",
        ("replica-is-always-healthy", " or not self.service.engine.alive", "", RAY),
        ("leaving-replica-drops-answers", "engine.close(self.grace)", "engine.close(0)", RAY),
    ),
    *in_file(
        "dllm/models/memory.py",
        ("limits-are-not-read", "(free_bytes, *left)", "(free_bytes,)", ROOM),
        ("own-limit-is-not-read", "(*_limits(), *_address_space())", "_limits()", ROOM),
        ("files-are-in-use", "used - _stat(folder", "used - 0 * _stat(folder", ROOM),
    ),
    *in_file(
        "dllm/models/loading/__init__.py",
        (
            "floats-load-where-there-are-none",
            "if rounding is not None and rounding.floating:",
            "if rounding is None and adapter:",
            ROUNDED,
        ),
        ("weights-are-read-first", "    room.check()\n", "", ROOM),
    ),
    *in_file(
        "dllm/models/speed/widened.py",
        (
            "one-part-is-widened",
            "sums += bias[start : start + part, None]",
            "sums += bias[: len(sums), None]",
            WIDENED,
        ),
        (
            "sums-are-rounded-twice",
            "        sums = times_rows(wide)",
            "        sums = times_rows(wide).to(x.dtype)",
            WIDENED,
        ),
        (
            "a-part-is-never-whole",
            "part = min(max(PART // (4 * num_inputs), 1), num_outputs)",
            "part = PART // (4 * num_inputs)",
            WIDENED,
        ),
        (
            "a-trial-picks-the-library",
            "not torch.backends.mkldnn.is_available()",
            'not __import__("dllm.models.speed.packed").models.speed.packed.prefers_onednn()',
            WIDENED,
        ),
    ),
    *in_file(
        "dllm/models/speed/packed.py",
        (
            "slower-library",
            "min(taken[0]) >= _CLEARLY * min(taken[1])",
            "min(taken[0]) < _CLEARLY * min(taken[1])",
            "tests/models/test_packed.py",
        ),
    ),
    *in_file(
        "schedulers/context_filter.py",
        ("context-near-is-far", "column - first < self.reach", "column < self.reach", CONTEXT),
        (
            "context-surest-by-confidence",
            "best(right, masked)",
            "best(candidates.confidence, masked)",
            CONTEXT,
        ),
        ("context-reads-beyond-the-row", " & (view.columns < view.length[:, None])", "", CONTEXT),
    ),
    *in_file(
        "dllm/learn2pd/context.py",
        (
            "context-committed-have-statistics",
            "return stacked * self.open[..., None]",
            "return stacked",
            CONTEXT,
        ),
        (
            "context-counts-the-column",
            "count.cumsum(1) - count) for",
            "count.cumsum(1)) for",
            CONTEXT,
        ),
        ("context-embeds-beyond-the-row", " * reading.inside[..., None]", "", CONTEXT),
    ),
    *in_file(
        "dllm/training/context_filter.py",
        ("context-teacher-lets-wrong-pass", "passed & right & masked", "passed & masked", CONTEXT),
        ("context-learns-decided-rows", "view.prompts).at(going)", "view.prompts)", CONTEXT),
        (
            "context-test-is-learnt-from",
            "lesson.at(~held), lesson.at(held)",
            "lesson, lesson.at(held)",
            CONTEXT,
        ),
        (
            "context-answer-of-a-seat",
            "self.reference[view.prompts].gather(1, slot)",
            "self.reference[: len(slot)].gather(1, slot)",
            CONTEXT,
        ),
        (
            "context-limits-of-a-seat",
            "self.limits[view.prompts, :, None]",
            "self.limits[: len(slot), :, None]",
            CONTEXT,
        ),
    ),
    *in_file(
        "dllm/training/learn2pd_examples.py",
        (
            "oracle-answer-of-a-seat",
            "self.reference[view.prompts].gather(1, known)",
            "self.reference[: len(known)].gather(1, known)",
            LEARNT,
        ),
        (
            "example-of-a-seat",
            "prompt=prompts,",
            "prompt=torch.arange(len(prompts)),",
            LEARNT,
        ),
        (
            "rows-that-stood-still-are-examples",
            "blocks.at(step > before[prompts])",
            "blocks.at(step >= before[prompts])",
            LEARNT,
        ),
    ),
    *in_file(
        "dllm/training/growth.py",
        (
            "copies-of-the-stream-beside-each-other",
            "weight.repeat(1, times)",
            "weight.repeat_interleave(times, 1)",
            GROWN,
        ),
        (
            "copies-of-heads-torn-apart",
            "else weight.repeat(times, 1)",
            "else weight.repeat_interleave(times, 0)",
            GROWN,
        ),
        ("shares-add-up-to-anything", "drawn - drawn.mean(1, keepdim=True)", "drawn * 1", GROWN),
        ("copies-are-equal", "drawn * times**-0.5", "drawn * 0", GROWN),
        (
            "noise-of-norms",
            "if weight.dim() == 2:\n            size",
            "if True:\n            size",
            GROWN,
        ),
        (
            "likeness-with-itself",
            "triu_indices(times, times, 1)",
            "triu_indices(times, times, 0)",
            GROWN,
        ),
    ),
    *in_file(
        "dllm/training/wider.py",
        ("grown-network-is-its-teacher", "keep_to(narrow.network)", "keep_to(grown)", GROWN),
        (
            "any-vocabulary-grows",
            "if known != build_tokenizer().get_vocab():",
            "if not known:",
            GROWN,
        ),
    ),
    *in_file(
        "dllm/training/tiny.py",
        (
            "lists-learn-from-the-teacher",
            "torch.where(batch.is_list[:, None, None], wanted,",
            "torch.where(~batch.is_list[:, None, None], wanted,",
            LISTS,
        ),
        ("teacher-is-the-learner", "teacher(*seen)", "network(*seen).detach()", LISTS),
        ("a-resumed-run-begins-anew", "if self.step == 0:", "if self.step >= 0:", LISTS),
    ),
    *in_file(
        "dllm/training/tiny_corpus.py",
        (
            "changed-tokens-of-the-prompt",
            "weight[len(prompt) + index] *= changed",
            "weight[index] *= changed",
            LISTS,
        ),
        (
            "copied-tokens-weigh-more",
            "if token != (given[index]",
            "if token == (given[index]",
            LISTS,
        ),
        ("easy-lists-are-kept", "or source.random() < easy:", "or source.random() >= easy:", LISTS),
    ),
    *in_file(
        "dllm/state/candidates.py",
        (
            "last-of-ties",
            "_among(score, masked).sort(dim=-1, descending=True, stable=True)",
            "(one.flip(-1) for one in _among(score, masked).sort(dim=-1, stable=True))",
            BOUNDARIES,
        ),
    ),
    *in_file(
        "dllm/state/carried.py",
        (
            "idle-rows-are-replaced",
            "values = torch.where(own, values, flat.index_select(0, at))",
            "pass",
            "tests/state/test_carried.py",
        ),
        (
            "a-state-is-written-to",
            "value.clone() if name in (places or ()) else value",
            "value",
            "tests/state/test_carried.py",
        ),
    ),
    *in_file(
        "dllm/state/rows.py",
        (
            "drafts-share-a-state",
            "other.scheduler_state = {name: value.clone() for name, value in state}",
            "other.scheduler_state = dict(state)",
            "tests/state/test_carried.py",
        ),
    ),
    *in_file(
        "dllm/state/canvas.py",
        (
            "kept-of-another-number",
            "if now is not then and not (type(now) is int and now == then):",
            "if now is not then and not isinstance(now, int):",
            "tests/state/test_canvas.py",
        ),
    ),
    *in_file(
        "schedulers/klass.py",
        (
            "unknown-is-stable",
            "spread(moved, torch.inf).masked_fill(~known, torch.inf)",
            "spread(moved, torch.inf)",
            "tests/schedulers/test_klass_credit.py",
        ),
    ),
    *in_file(
        "dllm/models/speed/choice.py",
        (
            "trial-decides-nothing",
            "if ratio >= PAYS:",
            "if ratio >= 0:",
            "tests/models/test_choice.py",
        ),
    ),
    *in_file(
        "dllm/decoding/prompt_memory.py",
        (
            "who-enters-reads-anew",
            "[_longest_match(canvas, row, self.spec) for row in rows]",
            "[_longest_match(row, row, self.spec) for row in rows]",
            "tests/serve/test_reuse.py",
        ),
    ),
    *in_file(
        "dllm/serve/tools/spoken.py",
        (
            "half-a-mark-is-told",
            "text if whole else text[: len(text) - _begun(text)]",
            "text",
            "tests/serve/tools/test_spoken.py",
        ),
    ),
    *in_file(
        "dllm/advice/seconds.py",
        (
            "advice-counts-head-twice",
            "layer_flops=cost.flops(shape) - pairs - head,",
            "layer_flops=cost.flops(shape) - pairs,",
            "tests/advice/test_advice.py",
        ),
    ),
    *in_file(
        "dllm/advice/workload.py",
        (
            "advice-stores-one-block-late",
            "        stored = start\n",
            "        stored = start - block\n",
            "tests/advice/test_advice.py",
        ),
    ),
    *in_file(
        "dllm/models/speed/rounded.py",
        (
            "floats-without-their-shift",
            "scale = (found.scale.float() / _SHIFT)",
            "scale = found.scale.float()",
            ROUNDED,
        ),
        (
            "a-row-of-zeros-is-no-number",
            "return bits.masked_fill(scale == 0, 0), scale, scale",
            "return bits, scale, scale",
            ROUNDED,
        ),
        (
            "halves-of-a-group-are-swapped",
            "return (low | high << 4).flatten(1), scale, zero",
            "return (high | low << 4).flatten(1), scale, zero",
            ROUNDED,
        ),
    ),
    *in_file(
        "dllm/models/loading/saving.py",
        (
            "old-config-stays-while-weights-are-written",
            "(folder / CONFIG).unlink(missing_ok=True)",
            "(folder / CONFIG).touch()",
            ROUNDED,
        ),
    ),
    *in_file(
        "dllm/tuning/confirm.py",
        (
            "a-failed-trial-hands-its-share-on",
            "handed = level if trials[-1].passed else 0.0",
            "handed = level",
            CONFIRMED,
        ),
        (
            "the-whole-error-rate-for-each-trial",
            "ERROR_RATE / len(tried), 0.0",
            "ERROR_RATE, 0.0",
            CONFIRMED,
        ),
        (
            "the-race-confirms-itself",
            "            new = arm.choice != race.space.stepwise\n",
            "            new = True\n",
            CONFIRMED,
        ),
        (
            "finalists-of-one-scheduler-stand-alone",
            "    if len(names) > 1:\n        return []\n    past",
            "    if names:\n        return []\n    past",
            CONFIRMED,
        ),
    ),
    *in_file(
        "dllm/tuning/race.py",
        (
            "one-scheduler-takes-all-places",
            "(first if 2 * taken[name] <= places else later)",
            "(first if taken[name] <= places else later)",
            "tests/tuning/test_race.py",
        ),
    ),
    *in_file(
        "dllm/tuning/arm.py",
        (
            "drafts-cost-nothing",
            '_FIELDS = {"forwards": "row_forwards", "passes": "forwards"}',
            '_FIELDS = {"forwards": "forwards", "passes": "forwards"}',
            "tests/tuning/test_race.py",
        ),
        (
            "two-settings-are-paired-backwards",
            "alone = mine.bit_count() - both, theirs.bit_count() - both",
            "alone = theirs.bit_count() - both, mine.bit_count() - both",
            "tests/tuning/test_race.py",
        ),
    ),
    *in_file(
        "dllm/tuning/problems.py",
        (
            "the-race-sees-the-problems-that-decide",
            "own = first[: sizes.race], first[sizes.race :], ",
            "own = first[: sizes.race], first[: sizes.confirm], ",
            "tests/tuning/test_tune.py",
        ),
    ),
    *in_file(
        "dllm/cli/signature.py",
        (
            "help-runs-the-imports-of-a-body",
            "    tree.body = _needed(tree.body, command)\n",
            "    tree.body = [*tree.body]\n",
            STARTED,
        ),
        (
            "help-needs-what-a-body-reads",
            "    command.body = command.body[:1]",
            "    command.body = [*command.body]",
            STARTED,
        ),
    ),
]
