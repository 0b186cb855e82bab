"""Decode steps of Llama-3.1-8B on a simulated Gaudi: seconds of the step, the sampler's share, warm-up.

Attention runs over a whole cache of one layer, and the sampler over a whole vocabulary; the card's clock says
how long they take. The linear layers come from the roofline of `tgi plan`: their weights would take 16 GB.
The warm-up is that of a model with as many, but small, layers.

    python benchmarks/gaudi_clock.py                 # every program of the sampler, for 1, 32 and 128 rows
    python benchmarks/gaudi_clock.py --card gaudi3-compile --rows 128
    python benchmarks/gaudi_clock.py --attention     # steps with each kind of cache, beside the card's limit
"""

import argparse
import tempfile
from pathlib import Path

import attrs
import torch
from tgi_simulated_gaudi.device import CARDS, SimulatedHpu, open_card

from tgi.device.attention import AttentionSpec
from tgi.device.batch import Batch, FlatBlocks, GroupBatch
from tgi.device.costs import LLAMA_8B, Costs
from tgi.device.graphs import Program
from tgi.device.hpu import SPEC
from tgi.protocol import SAMPLERS, Bucket
from tgi.scheduler.warming import warm_up_steps
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.weights.formats.fp8 import FP8
from tgi.worker.runner import Runner

CONTEXT_BLOCKS = 8
"""Blocks of each row: 1,024 tokens."""
LAYERS = 32
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 32, 8, 128, 128


class Attending(Program):
    """Attention of one layer in a decode step whose rows have CONTEXT_BLOCKS each."""

    def __init__(self, device: SimulatedHpu, rows: int, *, wide: bool, small: bool, contiguous: bool) -> None:
        """`wide`: scores in float32; `small`: a cache in fp8; `contiguous`: not listed by block."""
        super().__init__()
        self._device = device
        self._spec = AttentionSpec(HEAD_DIM**-0.5, wide=wide)
        dtype, blocks = device.dtype("bfloat16"), rows * CONTEXT_BLOCKS
        self._cache = device.allocate_cache(
            1, (blocks + 1) * BLOCK, KV_HEADS, HEAD_DIM, FP8 if small else dtype
        )
        device.use(0, self._spec)

        def column(values: object) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.int32).to("hpu")

        each, places = column(range(rows)), torch.arange(blocks)
        owners, left = places // CONTEXT_BLOCKS, CONTEXT_BLOCKS - places % CONTEXT_BLOCKS
        listed = FlatBlocks(None if contiguous else column(places), column(owners), column(left * BLOCK))
        group = GroupBatch(each, torch.zeros(rows, 0, dtype=torch.int32).to("hpu"), flat=listed)
        batch = Batch(each, each, each, each, each, each, self._cache, [group])
        self._plan = device.plan(batch, BLOCK)[0]

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        """Attend with the query [rows, heads, head_dim]."""
        return self._device.attend_decode(self._cache.layers[0], query, self._plan, self._spec)


def attention_seconds(device: SimulatedHpu, rows: int, **kind: bool) -> float:
    """Return the seconds of attention in all layers; `kind` is `Attending`'s."""
    run = device.graph(Attending(device, rows, **kind))
    query = torch.zeros(rows, HEADS, HEAD_DIM, dtype=torch.bfloat16).to("hpu")
    run(query)
    before = device.card.clock.causes["compute"]
    run(query)
    return LAYERS * float(device.card.clock.causes["compute"] - before)


def linear_seconds(costs: Costs, rows: int) -> float:
    """Return the seconds of the linear layers, and of starting a step, by the roofline."""
    return float(costs.decode(rows, 0)) - rows * costs.row


def compare_caches(card_name: str, rows: int) -> None:
    """Print one line for each kind of cache: the step without the sampler, beside what the card allows."""
    card = SPEC.cards[card_name.partition("-")[0]]
    for name, kind in KINDS.items():
        kv_bytes = LLAMA_8B.kv_bytes / (2 if kind["small"] else 1)
        with open_card(card_name) as device, torch.inference_mode():
            if name.startswith("before"):
                device.bridge = attrs.evolve(device.bridge, **(BEFORE if kind["small"] else {}))
            attention = attention_seconds(device, rows, **kind)
        step = attention + linear_seconds(Costs.of(LLAMA_8B, card), rows)
        limit = (LLAMA_8B.weight_bytes + rows * CONTEXT_BLOCKS * BLOCK * kv_bytes) / card.bandwidth
        print(
            f"{card_name:15} {rows:4} rows  {name:24} attention {1e3 * attention:6.2f} ms  "
            f"step {1e3 * step:6.2f} ms, {limit / step:5.1%} of what the memory allows",
            flush=True,
        )


BEFORE = {"fp8_gemm": None}
KINDS = {
    "before, bfloat16": {"wide": True, "small": False, "contiguous": False},
    "bfloat16": {"wide": False, "small": False, "contiguous": False},
    "bfloat16, contiguous": {"wide": False, "small": False, "contiguous": True},
    "before, fp8": {"wide": True, "small": True, "contiguous": False},
    "fp8": {"wide": False, "small": True, "contiguous": False},
    "fp8, contiguous": {"wide": False, "small": True, "contiguous": True},
}
"""Caches by name. Before, scores were in float32, and a cache in fp8 was made wider first."""


def measure(folder: Path, card_name: str, rows: int) -> None:
    """Print one line for each program of the sampler."""
    generation = card_name.partition("-")[0]
    costs = Costs.of(LLAMA_8B, SPEC.cards[generation])
    blocks = rows * CONTEXT_BLOCKS
    with open_card(card_name) as device, torch.inference_mode():
        attention = attention_seconds(device, rows, wide=False, small=False, contiguous=False)
    model = attention + linear_seconds(costs, rows)
    with open_card(card_name) as device, torch.inference_mode():
        command = load_command(folder, dtype="bfloat16", lanes=rows, top=13, device="hpu-sim")
        runner = Runner.load(command, Shard(), device)
        runner.allocate(2)
        clock = device.card.clock
        for name, step in zip(SAMPLERS, warm_up_steps(Bucket(rows, 1, blocks)), strict=True):
            compiled = clock.causes["compile"]
            runner.execute(step)
            warm_up = clock.causes["compile"] - compiled
            programs = runner.programs
            assert programs is not None
            sampler = list(programs._compiled.values())[-1]  # the one that was compiled last
            packed = device.upload(*sampler.layout.pack({}))
            before = clock.seconds
            sampler.run(*packed)
            took = clock.seconds - before
            share = took / (model + took)
            print(
                f"{card_name:15} {rows:4} rows  {name:11} step {1e3 * (model + took):6.2f} ms  "
                f"sampler {1e3 * took:6.2f} ms, {share:5.1%}  compiled in {warm_up:4.1f} s",
                flush=True,
            )
        compiled = clock.causes["compile"]
        runner.execute(warm_up_steps(Bucket(rows, 1, blocks + rows))[0])
        print(f"another bucket of {rows} rows is compiled in {clock.causes['compile'] - compiled:.1f} s")


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--card", choices=CARDS, default="gaudi2-lazy")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--attention", action="store_true", help="compare kinds of caches")
    options = parser.parse_args()
    if options.attention:
        for rows in options.rows:
            compare_caches(options.card, rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"num_hidden_layers": LAYERS, "vocab_size": LLAMA_8B.vocabulary}
        make_llama(Path(folder), **sizes)
        for rows in options.rows:
            measure(Path(folder), options.card, rows)


if __name__ == "__main__":
    main()
