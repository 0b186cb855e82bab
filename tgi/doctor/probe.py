"""`python -m tgi.doctor.probe DEVICE THREADS RANK RANKS FILE`: tries what a server needs of a device.

Sends its parent the name of each probe when it begins, and its result. Not part of the server process: it
imports torch.
"""

import functools
import sys
from collections.abc import Callable

import msgspec
import numpy as np
import torch

from tgi.device.base import Device
from tgi.device.graphs import Tally
from tgi.parent import Parent, leave
from tgi.plugins import ConfigError, devices, load_plugins
from tgi.plugins.check import Check, Doctor, fail, ok, warn
from tgi.plugins.machine import GIB
from tgi.weights import Shard
from tgi.worker.runner import open_device

MIN_FREE = 0.9
"""Share of a card's memory that is free if no other process uses it."""
MAX_ERROR = 0.5
"""Largest rounding error of a product of 64 x 64 matrices of normal numbers, with a wide margin."""


def probes_of(device: Device, doctor: Doctor) -> dict[str, Callable[[], Check]]:
    """Return the probes of this device by the names of their checks."""
    probes: dict[str, Callable[[], Check]] = {}
    if device.total_bytes():
        probes["memory of the card"] = functools.partial(probe_memory, device, doctor)
    probes["numbers"] = functools.partial(probe_numbers, device, doctor)
    if device.compiles:
        probes["graph"] = functools.partial(probe_graph, device, doctor)
    return probes | dict(device.probes())


def probe_memory(device: Device, doctor: Doctor) -> Check:
    """Compare the free memory of a card with all of it."""
    total, free = device.total_bytes(), device.free_bytes()
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free."
    if free < MIN_FREE * total:
        return warn("memory of the card", found, doctor.little_memory)
    return ok("memory of the card", found)


def probe_numbers(device: Device, doctor: Doctor) -> Check:
    """Compare a product of matrices in the dtype that models are computed in with the host's in float64."""
    dtype = device.dtype("auto")
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    product = device.linear(x.to(device.torch_device), device.prepare_weight(weight.clone())).float().cpu()
    error = (product.double() - x.double() @ weight.double().t()).abs().max().item()
    subject = f"A product of matrices in {str(dtype).removeprefix('torch.')}"
    if not error < MAX_ERROR:  # a NaN is not, either
        return fail("numbers", f"{subject} is wrong by {error:.2g}.", doctor.wrong_result)
    return ok("numbers", f"{subject} is right.")


def probe_graph(device: Device, doctor: Doctor) -> Check:
    """Run a program that keeps a tensor three times, with other numbers each time."""
    graph, total = device.graph(Tally(device.torch_device)), np.zeros(4, np.int32)
    for call in range(1, 4):
        packed = np.arange(4, dtype=np.int32) + call
        total += packed
        result = device.fetch(*graph(*device.upload(packed)))()[0].tolist()
        expected = (2 * total).tolist()
        if result != expected:
            found = f"Call {call} of a graph returns {result} instead of {expected}."
            return fail("graph", found, doctor.wrong_result)
    return ok("graph", "Graph replay returns correct results and preserves state.")


def probe_ranks(device: Device, doctor: Doctor, shard: Shard, store: str) -> Check:
    """Compute a sum over all ranks."""
    expected = shard.size * (shard.size + 1) // 2
    device.connect(shard, store)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.full((1024,), shard.rank + 1.0, dtype=dtype, device=device.torch_device)
        total = device.all_reduce(x, shard).float().cpu()
        if not bool((total == expected).all()):
            name = str(dtype).removeprefix("torch.")
            found = f"The sum of {name} over {shard.size} ranks is {total[0].item():g} instead of {expected}."
            return fail("all-reduce", found, doctor.links)
    return ok("all-reduce", f"{shard.size} ranks compute the right sum.")


_GENERAL_ADVICE = {
    "out of memory": "Find the process that holds the memory, and end it.",
    "gloo": "Check that the loopback interface is up, or name another in GLOO_SOCKET_IFNAME.",
}


def attempt(name: str, probe: Callable[[], Check], doctor: Doctor) -> Check:
    """Return the result of a probe; an exception is a failure."""
    try:
        return probe()
    except Exception as error:
        return failure(name, error, doctor)


def failure(name: str, error: Exception, doctor: Doctor) -> Check:
    """Return a failed check for an exception, with advice for its message."""
    for_people = isinstance(error, ConfigError)
    line = " ".join((f"{error}" if for_people else f"{type(error).__name__}: {error}").split())
    default = "Correct that, or start with another --device." if for_people else doctor.crash
    table = {**doctor.advice, **_GENERAL_ADVICE}
    advice = next((text for phrase, text in table.items() if phrase.lower() in line.lower()), default)
    return fail(name, f"{line[:1].upper()}{line[1:300].rstrip('.')}.", advice)


@torch.inference_mode()
def run(name: str, threads: int, shard: Shard, store: str, say: Callable[[str | Check], None]) -> None:
    """Open the device and run its probes; say the name of each when it begins, then its result."""
    doctor = devices(load_plugins())[name].open_doctor()
    say("device")
    try:
        device = open_device(name, threads)
    except Exception as error:
        say(failure("device", error, doctor))
        return
    say(ok("device", f"{name} can be opened."))
    probes = probes_of(device, doctor)
    if shard.size > 1:
        probes["all-reduce"] = functools.partial(probe_ranks, device, doctor, shard, store)
    for title, probe in probes.items():
        say(title)
        say(attempt(title, probe, doctor))


def main() -> None:
    """Run the probes of one rank, as the command line says."""
    name, threads, rank, ranks, store = sys.argv[1:]

    parent = Parent.of_this_process()
    parent.leave_together()

    def say(message: str | Check) -> None:
        parent.send(msgspec.json.encode(message))

    run(name, int(threads), Shard(int(rank), int(ranks)), store, say)


if __name__ == "__main__":
    main()
    leave(0)
