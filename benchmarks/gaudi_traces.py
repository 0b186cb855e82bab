"""Measure how long a bucket takes in a Gaudi's compile mode before the card's own compiler.

    python benchmarks/gaudi_traces.py                    # 2 and 32 layers, with aot_eager
    python benchmarks/gaudi_traces.py --backend eager    # Dynamo alone

Kernels of the bridge are plain functions, as in tests/device/test_hpu_dynamo.py.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.device.test_hpu_dynamo import Traced, open_plain_bridge
from tgi.device.hpu import hpu_device
from tgi.device.hpu.compiled_regions import CompiledRegions
from tgi.protocol import Bucket
from tgi.scheduler.warming import warm_up_steps
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.worker.runner import Runner

BUCKETS = (Bucket(1, 128, 0, prefill=True), Bucket(8, 1, 16), Bucket(8, 1, 32), Bucket(4, 1, 16))


def measure(layers: int, backend: str) -> None:
    """Print the seconds of each bucket."""
    device = Traced()
    device.graphs = CompiledRegions(
        lambda region: torch.compile(region, backend=backend, dynamic=False, fullgraph=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        make_llama(folder, num_hidden_layers=layers)
        runner = Runner.load(load_command(folder), Shard(), device)
    runner.allocate(64)
    rows = set()
    for bucket in BUCKETS:
        began = time.perf_counter()
        for step in warm_up_steps(bucket, sampled=bucket.rows in rows):
            runner.execute(step)
        rows.add(bucket.rows)
        print(f"{layers:3} layers  {bucket}  {time.perf_counter() - began:6.1f} s", flush=True)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="aot_eager")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 32])
    options = parser.parse_args()
    hpu_device.open_bridge = open_plain_bridge
    torch.set_num_threads(1)
    for layers in options.layers:
        measure(layers, options.backend)


if __name__ == "__main__":
    main()
