"""Probes of a Gaudi card for `tgi doctor`: behaviour that is its own, or differs between releases."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from tgi.device.base import Device
from tgi.device.graphs import Tally
from tgi.plugins.check import Check, fail, ok, warn

from .gaudi_checks import GaudiDoctor

_ADAPTERS = "Tell the authors of the adapters that you use that they cannot rely on {} here."


def gaudi_probes(device: Device) -> Mapping[str, Callable[[], Check]]:
    """Return the probes by the names of their checks."""
    probes = {
        "static outputs": probe_outputs,
        "int64": probe_int64,
        "one_hot(-1)": probe_one_hot,
        "fp8": probe_fp8,
    }
    return {name: functools.partial(probe, device) for name, probe in probes.items()}


def probe_outputs(device: Device) -> Check:
    """Tell whether the next call of a graph overwrites its result."""
    name, graph = "static outputs", device.graph(Tally(device.torch_device))
    (first,) = graph(*device.upload(np.full(4, 1, np.int32)))
    device.fetch(first)()
    device.fetch(*graph(*device.upload(np.full(4, 2, np.int32))))()
    try:
        later = first.cpu().tolist()
    except RuntimeError:
        return ok(name, "The result of a graph is gone after the next call; this server copies it before.")
    if later == [2] * 4:
        return ok(name, "Every call of a graph has a result of its own.")
    if later == [6] * 4:
        return ok(name, "The next call of a graph overwrites its result; this server copies it before.")
    found = f"After the next call the result of a graph is {later}, which is the result of neither call."
    return fail(name, found, GaudiDoctor.wrong_result)


def probe_int64(device: Device) -> Check:
    """Tell how numbers beyond 32 bits are stored."""
    name, number = "int64", 2**31 + 5
    try:
        stored = (torch.tensor([number]).to(device.torch_device) + 0).cpu().item()
    except RuntimeError:
        return ok(name, "Numbers beyond 32 bits are refused; this server sends none.")
    if stored == number:
        return ok(name, "Numbers of 64 bits are kept.")
    if stored == number - 2**32:
        return ok(name, "Numbers are cut to 32 bits without an error; this server sends none beyond.")
    found = f"{number} becomes {stored}, which is neither itself nor its lower 32 bits."
    return warn(name, found, _ADAPTERS.format("int64"))


def probe_one_hot(device: Device) -> Check:
    """Tell the result for the index -1: a row of zeros on Gaudi, and an error elsewhere."""
    name = "one_hot(-1)"
    try:
        rows = F.one_hot(torch.tensor([1, -1]).to(device.torch_device), 3).cpu().tolist()
    except RuntimeError:
        return ok(name, "It is refused; this server does not use it.")
    if rows == [[0, 1, 0], [0, 0, 0]]:
        return ok(name, "It gives a row of zeros, as expected of Gaudi; this server does not use it.")
    return warn(name, f"It gives {rows}.", _ADAPTERS.format("one_hot"))


def probe_fp8(device: Device) -> Check:
    """Compare the greatest number of 8 bits with the one this server assumes."""
    name, limits = "fp8", torch.tensor([240.0, 448.0])
    kept = limits.to(device.torch_device).to(torch.float8_e4m3fn).float().cpu() == limits
    reach, assumed = float((limits * kept).max()), device.fp8_limit
    found = f"Numbers of 8 bits reach {reach:g}."
    if reach < assumed:
        advice = (
            "Use neither --kv-cache-dtype fp8_e4m3fn nor a model in fp8: the card's generation is misjudged."
        )
        return fail(name, f"{found} By its generation the card should reach {assumed:g}.", advice)
    return ok(name, found)
