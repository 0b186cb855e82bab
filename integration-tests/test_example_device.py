"""A device of another package has buckets by its own costs, its own compile cache and its own doctor."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgi.testing.models import make_llama

PLUGINS = Path(__file__).parent / "plugins"


def tgi(*arguments: str, card: str = "") -> Any:
    environment = {**os.environ, "PYTHONPATH": str(PLUGINS), "OMP_NUM_THREADS": "1"}
    environment |= {"EXAMPLE_CARD": card} if card else {}
    done = subprocess.run(
        [sys.executable, "-m", "tgi", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_its_plan_has_its_costs_and_buckets_by_them(tmp_path: Path) -> None:
    model = str(make_llama(tmp_path / "model"))
    bounds = ("--max-graphs", "12", "--max-total-tokens", "512", "--json", "--dtype", "float32")
    plans = {
        card: tgi("plan", "--model-id", model, "--device", card, *bounds)
        for card in ("example-rows", "example-blocks")
    }
    buckets = {card: [b for b in plan["buckets"] if b["tokens"] == 1] for card, plan in plans.items()}
    for card, plan in plans.items():
        assert (plan["card"], plan["memory"]["total"]) == (card, 8 << 30)
        row, block = (1e-3, 1e-9) if card == "example-rows" else (1e-9, 1e-3)
        times = {round(1e-3 + b["rows"] * row + b["blocks"] * block, 12) for b in buckets[card]}
        assert {round(step["seconds"], 12) for step in plan["decode"]} <= times
    rows = {card: {bucket["rows"] for bucket in found} for card, found in buckets.items()}
    assert len(rows["example-rows"]) > len(rows["example-blocks"])
    widest = {card: {b["rows"] * 32 == b["blocks"] for b in found} for card, found in buckets.items()}
    assert widest == {"example-rows": {True}, "example-blocks": {True, False}}


def test_its_ranks_keep_what_they_compile_where_they_are_told(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    server = start(
        environment={"EXAMPLE_CARD": "example-blocks"},
        device="example",
        recipe_cache=tmp_path,
        max_graphs=6,
        max_total_tokens=128,
        max_batch_size=2,
    ).wait_ready()
    texts = [
        one.generate("What is Deep Learning?", max_new_tokens=20)["generated_text"]
        for one in (server, start(device="cpu").wait_ready())
    ]
    assert texts[0] == texts[1]
    (folder,) = tmp_path.iterdir()
    assert "-1xexample-blocks-" in folder.name
    assert (folder / "opened").exists()
    server.end()


def test_its_doctor_speaks() -> None:
    checks = {
        check["name"]: check
        for check in tgi("doctor", "--device", "example", "--port", "0", "--json", card="example-rows")
    }
    assert checks["example"]["found"] == "The card is example-rows, for 1 ranks."
    assert checks["blocks"]["found"] == "A block has 16 tokens."
    assert checks["graph"]["state"] == "ok"
