"""Time of a decode step on the CPU by the format of the weights, divided by that of a model in bfloat16.

    PYTHONPATH=. python benchmarks/format_speed.py             # writes benchmarks/format_speed.json
    PYTHONPATH=. python benchmarks/format_speed.py GGUF NVFP4  # those whose names have a word; others stay
    python -m tests.test_weight_formats_page                   # takes the ratios into docs/weight-formats.md

Both models take turns, and the least time of each counts, since other processes only ever add: a machine that
is not quite quiet needs more --turns. Weights are made up; a GPTQ with an order of input features would not
have one, and is left out, as are formats of experts, which these models do not have.
"""

import argparse
import gc
import json
import time
from pathlib import Path

from forward import decode, make_runner, use_environment_of_device

from tests.test_weight_formats_page import ROWS
from tgi.config import ROUNDINGS
from tgi.device.cpu import SPEC
from tgi.plugins import ConfigError, JsonReader
from tgi.protocol import Step
from tgi.weights.formats import WeightFormat, read_format
from tgi.worker.runner import Runner

RESULTS = Path(__file__).with_suffix(".json")
CONTEXT = 160


def formats() -> dict[str, WeightFormat]:
    """Return the formats that a CPU loads, by their names in the documentation."""
    found = {}
    for name, config in ROWS.items():
        if not config.get("desc_act") and not name.endswith(", experts"):
            try:
                found[name] = read_format(JsonReader({"quantization_config": config}))
            except ConfigError:
                continue
    for name in ROUNDINGS:
        if name in SPEC.roundings:
            found[f"`--quantize {name}`"] = read_format(JsonReader({}), name)
    return found


def seconds(runner: Runner, step: Step) -> float:
    """Return the time of a step."""
    began = time.perf_counter()
    runner.execute(step)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", default=[""], help="default: all formats")
    parser.add_argument("--shape", default="llama-160m")
    parser.add_argument("--turns", type=int, default=40)
    args = parser.parse_args()
    use_environment_of_device()
    base, known = make_runner(args.shape, "bfloat16", 0), formats()
    results = json.loads(RESULTS.read_text())
    for name in [name for name in known if any(word in name for word in args.words)]:
        runner, ratios = make_runner(args.shape, "bfloat16", 0, known[name]), []
        for rows in (1, 16):
            step = decode(rows, CONTEXT, sampling=False)
            seconds(runner, step), seconds(base, step)
            taken = [(seconds(runner, step), seconds(base, step)) for _ in range(args.turns)]
            mine, theirs = map(min, zip(*taken, strict=True))
            ratios.append(round(mine / theirs, 2))
        results[name] = ratios
        print(f"{name}: {ratios}", flush=True)
        del runner
        gc.collect()
    ordered = {name: results[name] for name in known if name in results}
    RESULTS.write_text(json.dumps(ordered, indent=2) + "\n")


if __name__ == "__main__":
    main()
