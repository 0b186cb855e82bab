"""Cost of a step with LoRA adapters: of none, of one and of eight in a batch of 16, and of slots alone.

On the CPU the kinds of steps take turns, and the median of each kind's time divided by that of a model
without slots in the same turn is printed: a machine that others use is slower and faster
by turns. On a simulated Gaudi its clock says how long a step of two layers of Llama-3.1-8B takes.

    python benchmarks/loras.py                                   # llama-160m on the CPU
    python benchmarks/loras.py --card gaudi2-lazy --slots 8 --rank 16
"""

import argparse
import statistics
import time

import msgspec
import torch
from forward import decode, use_environment_of_device
from make_checkpoint import SHAPES
from tgi_simulated_gaudi.device import CARDS, open_card

from tgi.device.base import Device
from tgi.layers import Build, LlamaDecoder
from tgi.layers.loading import LoadedModel
from tgi.layers.lora import Loras
from tgi.plugins import JsonReader, architectures, load_plugins
from tgi.protocol import Bucket, Load, LoraSlots, Step, ints
from tgi.scheduler.warming import warm_up_step, with_loras
from tgi.weights import DummyWeights, Shard
from tgi.weights.lora_file import LoraPair
from tgi.worker.runner import Runner, open_device

ROWS, CONTEXT, BLOCK = 16, 160, 16
TWO_LAYERS = {
    **SHAPES["llama-1b"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "vocab_size": 32000,
}
"""A part of Llama-3.1-8B that fits into the memory of most machines."""


def make_runner(device: Device, shape: dict[str, object], slots: LoraSlots) -> Runner:
    """A model with made-up weights, and an adapter of the full rank for every layer in each slot."""
    config = architectures(load_plugins())["LlamaForCausalLM"].config(JsonReader(shape))
    dtype = device.dtype("auto")
    loras = Loras(device, dtype, slots) if slots.count else None
    build = Build(DummyWeights(dtype), Shard(), device, dtype, loras=loras)
    command = Load(
        folder="",
        architecture="LlamaForCausalLM",
        device="cpu",
        dtype="auto",
        threads=device.threads,
        lanes=ROWS,
        block_size=BLOCK,
        max_tokens=128 * BLOCK,
        loras=slots,
    )
    with torch.inference_mode():
        runner = Runner.of(LoadedModel(LlamaDecoder(config, build).eval(), config, build), command)
        runner.allocate(ROWS * 128)
    for slot in range(slots.count):
        assert loras is not None
        pairs = [
            LoraPair(
                piece.module,
                0.01 * torch.randn(slots.rank, piece.parts[0].shape[1]),
                0.01 * torch.randn(piece.parts[0].shape[0], slots.rank),
            )
            for _, pieces in loras.weights
            for piece in pieces
        ]
        loras.put(slot, pairs)
    return runner


def steps(plain: Step) -> dict[str, Step]:
    """The kinds of steps by name."""
    kinds = {
        "no row has an adapter": [-1] * ROWS,
        "one row has": [0] + [-1] * (ROWS - 1),
        "all rows have the same": [0] * ROWS,
        "eight adapters, two rows each": [row // 2 for row in range(ROWS)],
    }
    return {
        name: msgspec.structs.replace(plain, loras=ints(slots) if max(slots) >= 0 else b"")
        for name, slots in kinds.items()
    }


def measure_cpu(shape: str, slots: LoraSlots, turns: int) -> None:
    """Print the ratios on the CPU."""
    device = open_device("cpu", 0)
    without, runner = (make_runner(device, SHAPES[shape], kind) for kind in (LoraSlots(), slots))
    plain = decode(ROWS, CONTEXT, sampling=False)
    kinds = steps(plain)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(turns + 1):
        base = timed(without, plain)
        for name, step in kinds.items():
            taken = timed(runner, step)
            if turn:
                times[name].append(taken / base)
    for name, ratios in times.items():
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{shape}, {slots.count} x {slots.rank}: {name}: {middle:.3f} ({low:.3f} to {high:.3f})")


def timed(runner: Runner, step: Step) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    runner.execute(step)
    return time.perf_counter() - began


def measure_card(card: str, slots: LoraSlots) -> None:
    """Print the times on the clock of a simulated card; it does not matter how many rows have adapters."""
    with open_card(card) as device:
        runner = make_runner(device, TWO_LAYERS, slots)
        plain = warm_up_step(Bucket(ROWS, 1, ROWS))
        took = []
        for step in (plain, with_loras(plain)):
            runner.execute(step)
            before = device.card.clock.seconds
            runner.execute(step)
            took.append(device.card.clock.seconds - before)
        print(
            f"{card}, {slots.count} slots of rank {slots.rank}: {1e3 * took[0]:.3f} ms without adapters, "
            f"{1e3 * took[1]:.3f} ms with, {took[1] / took[0]:.3f}"
        )


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--card", choices=CARDS)
    parser.add_argument("--shape", choices=SHAPES, default="llama-160m")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    slots = LoraSlots(options.slots, options.rank)
    if options.card is None:
        use_environment_of_device()
        measure_cpu(options.shape, slots, options.turns)
    else:
        measure_card(options.card, slots)


if __name__ == "__main__":
    main()
