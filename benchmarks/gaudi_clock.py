"""Decode steps of Llama-3.1-8B on a simulated Gaudi: seconds of the step, the sampler's share, warm-up.

The sampler runs over a whole vocabulary, and the card's clock says how long it takes. The model's part comes
from the roofline of `tgi plan`: its weights would take 16 GB. The warm-up is that of a model with as many,
but small, layers.

    python benchmarks/gaudi_clock.py                 # every program of the sampler, for 1, 32 and 128 rows
    python benchmarks/gaudi_clock.py --card gaudi3-compile --rows 128
"""

import argparse
import tempfile
from pathlib import Path

import torch
from tgi_simulated_gaudi.device import CARDS, open_card

from tgi.device.costs import LLAMA_8B, Costs
from tgi.device.hpu import SPEC
from tgi.protocol import SAMPLERS, Bucket
from tgi.scheduler.warming import warm_up_steps
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.worker.runner import Runner

CONTEXT_BLOCKS = 8
"""Blocks of each row: 1,024 tokens."""
LAYERS = 32


def measure(folder: Path, card_name: str, rows: int) -> None:
    """Print one line for each program of the sampler."""
    generation = card_name.partition("-")[0]
    costs = Costs.of(LLAMA_8B, SPEC.cards[generation])
    blocks = rows * CONTEXT_BLOCKS
    model = costs.decode(rows, blocks) - rows * costs.row
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"num_hidden_layers": LAYERS, "vocab_size": LLAMA_8B.vocabulary}
        make_llama(Path(folder), **sizes)
        for rows in options.rows:
            measure(Path(folder), options.card, rows)


if __name__ == "__main__":
    main()
