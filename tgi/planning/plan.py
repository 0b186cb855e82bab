"""The plan of a server, as `tgi plan` shows it: made from the options and a description of the model."""

from collections.abc import Iterable, Mapping

import attrs
import msgspec
import psutil  # type: ignore[import-untyped]
import trio

from tgi.config import DEMO_MODEL, Options
from tgi.device.costs import graph_bytes, workspace_bytes
from tgi.executor import open_executor
from tgi.hub import Source, find_config, find_lora, lora_source
from tgi.plugins import Card, ConfigError, DeviceSpec, devices, load_plugins
from tgi.protocol import AttentionWorkspace, Bucket, Describe, Described, Loaded

from .memory import MemoryBudget
from .planner import Planner, model_size
from .setup import Setup, read_setup
from .shapes import ShapeLimits
from .speeds import Roofline, Speed, StageRoofline, decode_speeds, expected_padding, prefill_speeds
from .workload import Workload


@attrs.frozen(kw_only=True)
class Plan:
    """The memory, the buckets and the speed of a server."""

    model: str
    """Name or folder of the model, as the options have it."""
    card: str
    planner: Planner
    memory: MemoryBudget
    buckets: list[Bucket]
    """Buckets that are warmed up."""
    warm_up_seconds: float
    """Estimated time of the warm-up; a compile cache that has everything makes it a fraction."""
    padding: dict[str, float]
    """Time that padding adds to steps of each kind, as a share."""
    roofline: Roofline | None
    """Times of steps; None if the rates of the card are unknown."""
    decode: list[Speed]
    prefill: list[Speed]


def read_plan(options: Options) -> Plan:
    """Plan for the options. A process of its own describes the model: this one does not import torch.

    Raises HubError, ConfigError, OptionError and EngineError.
    """
    place = options.weights_cache_override or options.model_id or DEMO_MODEL
    folder = find_config(Source(str(place), options.revision, options.huggingface_hub_cache))
    device, card = find_card(options.device, devices(load_plugins()).values())
    loras = [find_lora(lora_source(options, lora)) for lora in options.loras]
    setup = read_setup(folder, options, device, {}, loras)
    setup.limits()  # what is wrong with them shows at once
    try:
        described = trio.run(describe, setup.describe_command())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return make_plan(str(place), setup, described, card)


async def describe(command: Describe) -> Described:
    """Describe a model in a process of its own."""
    async with open_executor() as executor:
        return await executor.describe(command)


def find_card(name: str, known: Iterable[DeviceSpec]) -> tuple[DeviceSpec, Card]:
    """Return the card of that name and its device; the first device that has it. Raises ConfigError."""
    cards: Mapping[str, tuple[DeviceSpec, Card]] = {
        name: (device, card) for device in reversed(list(known)) for name, card in device.cards.items()
    }
    if name not in cards:
        raise ConfigError(f"a plan needs --device {', '.join(sorted(cards))}, not {name!r}")
    return cards[name]


def make_plan(model: str, setup: Setup, described: Described, card: Card) -> Plan:
    """Plan for a described model on such cards. Raises OptionError."""
    if not card.memory_bytes:  # ranks share the memory of the machine, so more of them do not help
        described = msgspec.structs.replace(described, possible_ranks=[])
    planner = Planner.open(setup, described, card)
    limits, buckets = planner.limits, planner.choose()
    attention = planner.attention(buckets)
    loaded = [estimate_loaded(planner, part, attention, card) for part in described.parts]
    memory = planner.divide_memory([one for one in loaded for _ in range(setup.shards)], buckets)
    if memory.fits:
        buckets = planner.choose_again(buckets, memory, attention)
    roofline, padding = None, {}
    decode: list[Speed] = []
    prefill: list[Speed] = []
    if card.flops:
        roofline = Roofline(
            stages=[
                StageRoofline(
                    model=part,
                    size=model_size(part),
                    costs=setup.device.step_costs(model_size(part), card, setup.device.block_size),
                    card=card,
                    ranks=setup.shards,
                )
                for part in described.parts
            ]
        )
        decode, prefill = (
            list(speeds(limits, buckets, roofline)) for speeds in (decode_speeds, prefill_speeds)
        )
        if setup.device.compiles:
            blocks = memory.widest.blocks if memory.fits else None
            shapes = ShapeLimits.from_limits(limits, prefixes=planner.prefixes, blocks=blocks)
            padding = expected_padding(Workload.counted(planner.counts, shapes), buckets, planner.costs)
    return Plan(
        model=model,
        card=setup.options.device,
        planner=planner,
        memory=memory,
        buckets=buckets.to_warm_up() if setup.device.compiles else [],
        warm_up_seconds=planner.warm_up_seconds(buckets) or 0.0,
        padding=padding,
        roofline=roofline,
        decode=decode,
        prefill=prefill,
    )


def estimate_loaded(planner: Planner, model: Described, attention: AttentionWorkspace, card: Card) -> Loaded:
    """Return what each rank of a stage is going to report when it has loaded its part of the model."""
    setup, limits = planner.setup, planner.limits
    total = card.memory_bytes or psutil.virtual_memory().total // setup.ranks
    stages = planner.described.stage_layers
    workspace = workspace_bytes(model, setup.load_command(limits, attention, stages=stages))
    return Loaded(
        free_bytes=total - model.weight_bytes - workspace - model.lora_bytes,
        block_bytes=tuple(group.token_bytes * limits.block_size for group in model.groups),
        dtype=setup.options.compute_dtype,
        total_bytes=total,
        weight_bytes=model.weight_bytes,
        workspace_bytes=workspace,
        graph_bytes=graph_bytes(model.layers, setup.loras),
        lora_bytes=model.lora_bytes,
    )
