"""lm-evaluation-harness measures through the server what transformers measures directly."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgi.config import DEMO_MODEL

HERE = Path(__file__).parent
GLOSSARY = HERE.parent.parent / "demo" / "glossary.tsv"
ITEMS = 100
TOLERANCE = 1e-5
"""Of the log-likelihood per token."""


def items() -> list[dict[str, Any]]:
    """Which of four definitions is that of the word?"""
    with GLOSSARY.open() as lines:
        rows = list(csv.reader(lines, delimiter="\t"))
    draw = random.Random(0)
    found = []
    for index in range(ITEMS):
        drawn = draw.sample(rows, 4)
        answer = index % 4
        choices = [definition for _, definition in drawn]
        found.append({"word": drawn[answer][0], "choices": choices, "answer": answer})
    return found


def test_log_likelihoods(run_client: Callable[..., str], url: str, reference: Any, tmp_path: Path) -> None:
    questions = items()
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in questions))
    task = tmp_path / "tasks" / "definitions.yaml"
    task.parent.mkdir()
    task.write_text((HERE / "lm_eval_task.yaml").read_text())
    arguments = {
        "model": "tgi-demo",
        "base_url": f"{url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": DEMO_MODEL,
        "add_bos_token": True,
        "num_concurrent": 4,
        "max_length": 1024,
    }
    run_client(
        *("-m", "lm_eval", "run", "--model", "local-completions"),
        *("--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())),
        *("--include_path", task.parent, "--tasks", "definitions"),
        *("--batch_size", "4", "--log_samples", "--output_path", tmp_path / "out"),
        cwd=tmp_path,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_DATASETS_CACHE=str(tmp_path / "cache"),
    )
    (samples,) = (tmp_path / "out").rglob("samples_definitions_*.jsonl")
    (results,) = (tmp_path / "out").rglob("results_*.json")
    measured = [json.loads(line) for line in samples.read_text().splitlines()]
    measured.sort(key=lambda sample: sample["doc_id"])
    assert len(measured) == ITEMS

    hits = 0
    for item, sample in zip(questions, measured, strict=True):
        assert sample["doc"] == item
        direct = [reference.score(f"What is {item['word']}?", f"\n{choice}") for choice in item["choices"]]
        for ((log_likelihood, greedy),), score in zip(sample["resps"], direct, strict=True):
            # In float32 neither is closer to the truth: 2e-5 for a token at most, 5e-5 for a sum of 16.
            difference = float(log_likelihood) - score.log_likelihood
            assert abs(difference) / score.tokens < TOLERANCE
            assert greedy == str(score.greedy)
        hits += max(range(4), key=lambda index: direct[index].log_likelihood) == item["answer"]
    assert json.loads(results.read_text())["results"]["definitions"]["acc,none"] == hits / ITEMS
