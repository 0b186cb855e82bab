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


def items(reference: Any) -> list[dict[str, Any]]:
    """Which of four definitions is that of the word? One in ten has a greedy answer among the wrong ones."""
    with GLOSSARY.open() as lines:
        rows = list(csv.reader(lines, delimiter="\t"))
    draw = random.Random(0)
    found = []
    for index in range(ITEMS):
        drawn = draw.sample(rows, 4)
        answer = index % 4
        word, choices = drawn[answer][0], [definition for _, definition in drawn]
        if index % 10 == 0:
            choices[answer - 1] = reference.complete(f"What is {word}?", 40).text.strip()
        found.append({"word": word, "choices": choices, "answer": answer})
    return found


def test_log_likelihoods(run_client: Callable[..., str], url: str, reference: Any, tmp_path: Path) -> None:
    questions = items(reference)
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in questions))
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
        *("--include_path", HERE, "--tasks", "definitions"),
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

    hits = greedy_answers = 0
    for item, sample in zip(questions, measured, strict=True):
        assert sample["doc"] == item
        direct = [reference.score(f"What is {item['word']}?", f"\n{choice}") for choice in item["choices"]]
        for ((log_likelihood, greedy),), score in zip(sample["resps"], direct, strict=True):
            # Of single tokens some differ by 2e-5, as transformers in float32 does from itself in float64.
            difference = float(log_likelihood) - score.log_likelihood
            assert abs(difference) / score.tokens < TOLERANCE
            assert greedy == str(score.greedy)
            greedy_answers += score.greedy
        hits += max(range(4), key=lambda index: direct[index].log_likelihood) == item["answer"]
    assert greedy_answers >= ITEMS / 10
    assert json.loads(results.read_text())["results"]["definitions"]["acc,none"] == hits / ITEMS
