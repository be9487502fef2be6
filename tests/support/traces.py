"""Records of traces: one by hand, one with hostile texts, and what others are recorded from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import dllm
from dllm.trace import TraceRecord

QUESTIONS = [
    "tom has 53 pens. tom loses 3. how many pens does tom have?",
    "copy: tom, ann.",
    "reverse: tom, ann, sam, kim.",
]


GAPS: list[Any] = [dllm.Infill("tom has", 2, "pens. tom", 3, "3.", 9), "copy: tom, ann."]


METHODS = [
    *("fixed_quota", "threshold", "ete", "lopa", "adablock", "end_of_text", "klass", "multi_block"),
    *("wino:0.2,threshold_back=0.999", "remdm:remask=2,begin=0.5,loops=4", "rcr", "token_editing"),
    "token_editing:0.4,editing_threshold=0.3,post_steps=3",
    "insert_delete:0.4,editing_threshold=0.3,post_steps=3,delete_token_id=25,split_token_id=114",
]


OPTIONS: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8}


# One row by hand: 5 was committed, taken back, committed as 6, edited to 7; what follows was cut.
BY_HAND = TraceRecord(
    label="by hand",
    prompt_length=1,
    mask_token_id=0,
    tokens=(9, 7, 3, 1),
    given=(2,),
    commit_step=(3, -1, -1),
    confidence=(0.5, None, None),
    pieces={0: "<mask>", 1: "<eos>", 3: "c", 5: "e", 6: "f\n", 7: "g\th", 9: "p"},
    special=(0, 1),
    joined=(),
    blocks=((1, 0),),
    changes=((0, 1, 5), (1, 1, 0), (2, 1, 6), (3, 1, 7)),
    num_steps=4,
    forwards=4,
    row_forwards=6,
    finish_reason="eos",
)


HOSTILE = (
    "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>'\""
    "\x00\u202e\u2028👩\u200d🚀\x1b[2J"
)


def hostile() -> TraceRecord:
    record = replace(BY_HAND, label=HOSTILE, finish_reason=HOSTILE)
    damaged = {**record.to_json(), "pieces": {**BY_HAND.pieces, 5: HOSTILE, 3: HOSTILE}}
    return TraceRecord.from_json(json.loads(json.dumps(damaged)))
