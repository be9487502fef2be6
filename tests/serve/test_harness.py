"""The harness' own clients ask the server, and score what our offline harness scores."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from dllm.eval.tasks import arithmetic
from tests.support.serving import BASE

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: the extra lm-eval")
pytest.importorskip("tenacity", reason="tenacity, which lm_eval's API models need")
pytest.importorskip("aiohttp", reason="aiohttp, which lm_eval's API models need")

from lm_eval.tasks import TaskManager  # noqa: E402

import dllm.eval.harness  # noqa: E402, F401 makes our model known

NUM = 12
TASK = """
task: dllm_served
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["; ####", "never"], do_sample: false, max_gen_toks: 64}}
filter_list:
  - name: number
    filter: [{{function: regex, regex_pattern: "=(-?[0-9]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task on a local file."""
    folder = tmp_path_factory.mktemp("served")
    problems = islice(arithmetic.problems("test", 0, 100), NUM)
    lines = [json.dumps({"question": one.prompt, "answer": one.answer}) for one in problems]
    (folder / "sums.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = TASK.format(data=folder / "sums.jsonl", cache=folder / "cache")
    (folder / "served.yaml").write_text(text, encoding="utf-8")
    return folder


def evaluate(folder: Path, model: str, arguments: dict[str, Any], chat: bool, rows: int = 1) -> Any:
    return lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["dllm_served"],
        batch_size=rows,
        device="cpu",
        apply_chat_template=chat,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )


def texts(found: Any) -> list[str]:
    return [sample["resps"][0][0] for sample in found["samples"]["dllm_served"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "path", "chat", "rows", "concurrent"),
    [
        ("local-chat-completions", "chat/completions", True, 1, 1),
        ("local-chat-completions", "chat/completions", True, 1, 4),
        ("local-completions", "completions", False, 3, 1),
    ],
)
def test_scores_and_texts_are_those_of_the_offline_harness(
    folder: Path, address: str, client: str, path: str, chat: bool, rows: int, concurrent: int
) -> None:
    own = {"scheduler": BASE.scheduler, "cache": BASE.cache, "block_length": BASE.block_length}
    offline = evaluate(folder, "dllm", {"pretrained": "tiny", **own}, chat, rows=4)
    asked = {
        "model": "tiny",
        "base_url": f"{address}/v1/{path}",
        "num_concurrent": concurrent,
        "max_retries": 1,
        "tokenizer_backend": None,
        "tokenized_requests": False,
    }
    served = evaluate(folder, client, asked, chat, rows)
    assert texts(served) == texts(offline)
    assert len({*texts(served)}) > NUM // 2
    scores = [found["results"]["dllm_served"] for found in (served, offline)]
    assert scores[0]["exact_match,number"] == scores[1]["exact_match,number"] > 0
