"""The buckets of a server: chosen before its model is loaded, and again where memory or time are short."""

import logging
from collections.abc import Sequence
from typing import Any

from tgi.config import OptionError, Options
from tgi.limits import Limits
from tgi.plugins import DeviceSpec
from tgi.plugins.machine import Machine
from tgi.protocol import Loaded
from tgi.scheduler.buckets import Buckets

from .bucketing import Bucketing, GraphsError, make_buckets, warm_up_seconds
from .model import Model, prefix_limit
from .setup import model_costs
from .shapes import AttentionWorkspace
from .workload import ShapeCounts

log = logging.getLogger(__name__)


def choose_buckets(
    model: Model, limits: Limits, options: Options, graphs: int | None = None, **known: Any
) -> Buckets:
    """Those that steps are padded to, at most `graphs` of them; `known`: see `make_buckets`.

    Takes a moment. Raises ConfigError and OptionError.
    """
    device = model.device
    if not device.compiles:
        return Buckets(limits)
    _, card = device.card(Machine())
    costs = model_costs(model.folder, model.config, options, card, device)
    bucketing = Bucketing.from_options(options, costs, graphs)
    prefixes = prefix_limit(model, options) != 0
    return make_buckets(limits, device, bucketing, prefixes=prefixes, **known)


def expected_warm_up(model: Model, buckets: Buckets) -> float | None:
    """How many seconds it will take; None where nothing is compiled in it."""
    if not model.device.compiles:
        return None
    return warm_up_seconds(len(buckets.to_warm_up()), model.config.num_layers)


def fewer_buckets(model: Model, limits: Limits, options: Options, graphs: int, **known: Any) -> Buckets:
    """Buckets for a warm-up that shall not take long: so many, or as few as are possible. Takes a moment.

    `known`: see `make_buckets`.
    """
    count = graphs
    while True:
        try:
            buckets = choose_buckets(model, limits, options, count, **known)
        except GraphsError as error:
            count = error.needed
            continue
        log.log(
            logging.INFO if count == graphs else logging.WARNING,
            "--warmup-budget is enough for %d buckets: there will be %d",
            graphs,
            len(buckets.to_warm_up()),
        )
        return buckets


def fit_buckets(
    model: Model,
    limits: Limits,
    options: Options,
    loaded: Sequence[Loaded],
    buckets: Buckets,
    within: AttentionWorkspace,
) -> Buckets:
    """Those, or fewer if --graph-memory-fraction is not enough for them. Raises OptionError if for none."""
    device, graph_fraction = model.device, options.graph_memory_fraction
    sizes = [rank for rank in loaded if rank.graph_bytes]
    if not device.compiles or graph_fraction is None or not sizes:
        return buckets
    fraction = device.memory_fraction if options.memory_fraction is None else options.memory_fraction
    graphs = min(int(max(r.free_bytes, 0) * fraction * graph_fraction) // r.graph_bytes for r in sizes)
    if graphs >= len(buckets.to_warm_up()):
        return buckets
    try:
        return choose_buckets(model, limits, options, graphs, within=within)
    except GraphsError as error:
        raise OptionError(
            f"--graph-memory-fraction {graph_fraction:g} is enough for {graphs} graphs, and there must be "
            f"{error.needed}"
        ) from error


def known_shapes(device: DeviceSpec, options: Options) -> ShapeCounts | None:
    """What --record-shapes adds to; None where there is nothing to record. Raises OptionError."""
    path = options.record_shapes
    if path is not None and not (device.compiles and device.flat):
        log.warning("--record-shapes has no effect: shapes do not matter on %s", device.name)
        path = None
    return None if path is None else ShapeCounts.open(path, device.block_size)
