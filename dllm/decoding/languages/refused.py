"""What constraints do not go with, and why: settings, and parts beside grammars that are asked."""

from __future__ import annotations

from dllm.cache import Cache
from dllm.decoding.languages.constrained import Joint
from dllm.schedulers import Scheduler
from dllm.state.progress import AtEnd

# Settings that change which tokens may stand where, behind a constraint's back.
CONSTRAINT_REFUSES = {
    "min_new_tokens": "say in the constraint how long a text is",
    "logits_processors": "one may forbid the only token that a text can go on with",
    "stop": "what it cuts off may be needed; end the text in the constraint",
    "defer_eos": "where the text must end, an end token cannot come last",
    "deferred_token_ids": "a token may be the only one that a text can go on with",
}


def check_asking(
    scheduler: Scheduler,
    cache: Cache,
    verified: bool = False,
    joint: Joint = "confidence",
    at_eos: AtEnd | None = None,
) -> None:
    """Raises ValueError, with the way out, for what does not go with such a grammar."""
    of_cache = f"cache {cache.summary()['name']!r}"
    reasons = {
        f"scheduler {scheduler.summary()['name']!r}: it masks or edits tokens that were accepted": (
            scheduler.can_revise
        ),
        f"{of_cache} with first_token='force': a token that is refused could not be replaced; take "
        "first_token='feed'": getattr(cache, "first_token", "feed") == "force",
        "a verifier: its drafts would be refused other tokens than the plain run": verified,
        "joint='map': the most probable text of a grammar is not known; take 'confidence'": (
            joint == "map"
        ),
        "at_eos='truncate': tokens behind an end could not be written anew; take 'stop'": (
            at_eos == "truncate"
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"a Grammar that is asked token by token refuses {reason}. With method='depth' it "
                "goes together"
            )


def check_left_to_right(scheduler: Scheduler, num_slots: int, block_length: int | None) -> None:
    """Raises ValueError, with the way out, unless rows are decoded column by column."""
    out = "or take method='emptiness', which goes with any order"
    if block_length != 1:
        raise ValueError(
            f"method='prefix' knows what may come next from left to right, and block_length="
            f"{block_length} lets other slots come first: give block_length=1, {out}"
        )
    needs = scheduler.needs(num_slots, block_length)
    if needs.whole_row or needs.window > 1:
        raise ValueError(
            f"method='prefix' knows what may come next from left to right, and scheduler "
            f"{scheduler.summary()['name']!r} looks beyond a block of one slot: take 'threshold' "
            f"or another that keeps to the block, {out}"
        )
