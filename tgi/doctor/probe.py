"""`python -m tgi.doctor.probe DEVICE THREADS RANK RANKS FILE`: tries what a server needs of a device.

Writes a line of JSON for each probe that begins, its name, and one for what it comes to. Not part of the
server process: it imports torch.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch
import torch.nn.functional as F

from tgi.device.base import Device
from tgi.device.graphs import Program
from tgi.plugins import ConfigError
from tgi.weights import Shard
from tgi.worker.runner import open_device

from .check import Check, fail, ok, warn

SERVES_NOT = (
    "Do not serve with it: answers would be wrong. Try the other PT_HPU_LAZY_MODE, or another release."
)
LOGS = "Look for the reason in dmesg and in Gaudi's logs (HABANA_LOGS): no server would run."
FREE = 0.9
"""Share of the memory of a card that is free where nobody uses it, at least."""
GIB = 1 << 30


class Tally(Program):
    """Adds up what it is given, and gives twice that."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.sum = torch.zeros(4, dtype=torch.int32, device=device.torch_device)

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Its sum outlives the call."""
        self.sum.add_(packed)
        return self.sum * 2


def probe_memory(device: Device) -> Check:
    """What a card has, and has left."""
    name, total, free = "memory of the card", device.total_bytes(), device.free_bytes()
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free."
    if free < FREE * total:
        return warn(
            name,
            found,
            "Find with hl-smi or nvidia-smi who has the rest, and end it: the KV cache is what is left.",
        )
    return ok(name, found)


def probe_numbers(device: Device) -> Check:
    """A product of matrices in the dtype that models are computed in, against the host's in float64."""
    name, dtype = "numbers", device.dtype("auto")
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    got = device.linear(x.to(device.torch_device), device.prepare_weight(weight.clone())).float().cpu()
    wrong = (got.double() - x.double() @ weight.double().t()).abs().max().item()
    what = str(dtype).removeprefix("torch.")
    if not wrong < 0.5:  # nor not a number
        return fail(name, f"A product of matrices in {what} is wrong by {wrong:.2g}.", SERVES_NOT)
    return ok(name, f"A product of matrices in {what} is right.")


def probe_graph(device: Device) -> Check:
    """A program is captured or compiled, and then run with other numbers; it keeps a tensor meanwhile."""
    graph, total = device.graph(Tally(device)), np.zeros(4, np.int32)
    for call in range(1, 4):
        packed = np.arange(4, dtype=np.int32) + call
        total += packed
        got = device.fetch(graph(device.upload(packed)))()
        if got.tolist() != (2 * total).tolist():
            found = f"Call {call} of a graph gives {got.tolist()}, and {(2 * total).tolist()} would be right."
            return fail("graph", found, SERVES_NOT)
    return ok("graph", "A graph gives for each call what is right, and keeps what it shall.")


def probe_outputs(device: Device) -> Check:
    """Whether the result of a graph is overwritten by the next call."""
    name, graph = "static outputs", device.graph(Tally(device))
    first = graph(device.upload(np.full(4, 1, np.int32)))
    device.fetch(first)()
    device.fetch(graph(device.upload(np.full(4, 2, np.int32))))()
    try:
        later = first.cpu().tolist()
    except RuntimeError:
        return ok(name, "The result of a graph is gone after the next call; this server copies it before.")
    if later == [2] * 4:
        return ok(name, "Every call of a graph has a result of its own.")
    if later == [6] * 4:
        return ok(name, "The next call of a graph overwrites its result; this server copies it before.")
    found = f"After the next call the result of a graph is {later}, which is neither of the two."
    return fail(name, found, SERVES_NOT)


def probe_int64(device: Device) -> Check:
    """What becomes of a number beyond 32 bits."""
    name, number = "int64", 2**31 + 5
    try:
        got = (torch.tensor([number]).to(device.torch_device) + 0).cpu().item()
    except RuntimeError:
        return ok(name, "Numbers beyond 32 bits are refused; this server sends none.")
    if got == number:
        return ok(name, "Numbers of 64 bits are kept.")
    if got == number - 2**32:
        return ok(name, "Numbers are cut to 32 bits without a word; this server sends none beyond.")
    found = f"{number} becomes {got}, which is neither itself nor its lower 32 bits."
    return warn(name, found, "Tell the authors of adapters that you use: int64 is not to be relied on here.")


def probe_one_hot(device: Device) -> Check:
    """The index -1 gives a row of zeros on Gaudi, and is an error elsewhere."""
    name = "one_hot(-1)"
    try:
        got = F.one_hot(torch.tensor([1, -1]).to(device.torch_device), 3).cpu().tolist()
    except RuntimeError:
        return ok(name, "It is refused; this server does not use it.")
    if got == [[0, 1, 0], [0, 0, 0]]:
        return ok(name, "A row of zeros, as Gaudi has it; this server does not use it.")
    return warn(
        name,
        f"It gives {got}.",
        "Tell the authors of adapters that you use: one_hot is not to be relied on here.",
    )


def probe_fp8(device: Device) -> Check:
    """The greatest number of 8 bits, against what this server takes it for."""
    name, limits = "fp8", torch.tensor([240.0, 448.0])
    kept = limits.to(device.torch_device).to(torch.float8_e4m3fn).float().cpu() == limits
    reach, taken = float((limits * kept).max()), device.fp8_limit
    found = f"Numbers of 8 bits reach {reach:g}."
    if reach < taken:
        advice = "Use neither --kv-cache-dtype fp8_e4m3fn nor a model in fp8: the card is taken for another."
        return fail(name, f"{found} By its generation the card should reach {taken:g}.", advice)
    return ok(name, found)


def probe_ranks(device: Device, shard: Shard, store: Path) -> Check:
    """All ranks add up."""
    name, wanted = "all-reduce", shard.size * (shard.size + 1) // 2
    device.connect(shard, store)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.full((1024,), shard.rank + 1.0, dtype=dtype, device=device.torch_device)
        got = device.all_reduce(x, shard).float().cpu()
        if not bool((got == wanted).all()):
            what = str(dtype).removeprefix("torch.")
            found = f"The sum of {what} over {shard.size} ranks is {got[0].item():g}, and {wanted} is right."
            return fail(
                name,
                found,
                "Serve on one card, and check the links with hl-smi -n link or Intel's hccl_demo.",
            )
    return ok(name, f"{shard.size} ranks add up what they should.")


ADVICE = {
    "acquire": "Another process has the card, or HABANA_VISIBLE_MODULES names none: see the holders above.",
    "cannot be used here": "Use Intel's PyTorch image, or --device cpu.",
    "imported before": "Set PT_HPU_LAZY_MODE before the server starts, and let nothing else change it.",
    "out of memory": "Find who has the memory of the card with hl-smi or nvidia-smi, and end it.",
    "Allocation failed": "Find who has the memory of the card with hl-smi, and end it.",
    "cpu fallback": "An operation has no kernel in this release of Gaudi's software: take another one.",
    "HCCL": "Check HABANA_VISIBLE_MODULES, and the links between the cards with Intel's hccl_demo.",
    "gloo": "Check that the loopback interface is up, or name another in GLOO_SOCKET_IFNAME.",
}
"""By a word of the error, in the order in which they are looked for."""


def attempt(name: str, probe: Callable[[], Check]) -> Check:
    """What it comes to; an error is a failure."""
    try:
        return probe()
    except Exception as error:
        return failure(name, error)


def failure(name: str, error: Exception) -> Check:
    """With what to do about such an error."""
    meant = isinstance(error, ConfigError)  # for people
    line = " ".join((f"{error}" if meant else f"{type(error).__name__}: {error}").split())
    usual = "Put that right, or start with another --device." if meant else LOGS
    advice = next((advice for word, advice in ADVICE.items() if word.lower() in line.lower()), usual)
    return fail(name, f"{line[:1].upper()}{line[1:300].rstrip('.')}.", advice)


def probes_of(device: Device) -> dict[str, Callable[[Device], Check]]:
    """Those that say something of this kind of device."""
    every: dict[str, Callable[[Device], Check]] = {"numbers": probe_numbers}
    if device.total_bytes():
        every = {"memory of the card": probe_memory, **every}
    if not device.dynamic:
        every |= {"graph": probe_graph}
    if device.torch_device.type == "hpu":
        every |= {
            "static outputs": probe_outputs,
            "int64": probe_int64,
            "one_hot(-1)": probe_one_hot,
            "fp8": probe_fp8,
        }
    return every


@torch.inference_mode()
def run(name: str, threads: int, shard: Shard, store: Path, say: Callable[[object], None]) -> None:
    """Say of each probe that it begins, and what it comes to."""
    say("device")
    try:
        device = open_device(name, threads)
    except Exception as error:
        say(attrs.asdict(failure("device", error)))
        return
    say(attrs.asdict(ok("device", f"{name} can be opened.")))
    for title, probe in probes_of(device).items():
        say(title)
        say(attrs.asdict(attempt(title, functools.partial(probe, device))))
    if shard.size > 1:
        say("all-reduce")
        say(attrs.asdict(attempt("all-reduce", lambda: probe_ranks(device, shard, store))))


def main() -> None:
    """A rank's."""
    name, threads, rank, ranks, store = sys.argv[1:]

    def say(what: object) -> None:
        print(json.dumps(what), flush=True)

    run(name, int(threads), Shard(int(rank), int(ranks)), Path(store), say)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # as tgi.worker does: gloo's threads do not survive the interpreter's own end
