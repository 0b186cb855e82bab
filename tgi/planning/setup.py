"""From the options to what a plan is made of: reads config.json and the headers of the weights."""

from collections.abc import Mapping
from glob import glob
from os import environ
from pathlib import Path

import attrs

from tgi.config import DEMO_MODEL, OptionError, Options
from tgi.device.costs import Costs
from tgi.hub import Source, find_config
from tgi.limits import Limits, resolve_limits
from tgi.plugins import Architecture, Card, ConfigError, DeviceSpec, ModelConfig, devices, load_plugins
from tgi.plugins.lookup import find_architecture, read_config_json

from .bucketing import Bucketing
from .cards import target
from .plan import ITEM, Setup
from .roofline import Roofline
from .weights import rank_bytes, rank_numbers, read_shapes


def read_setup(options: Options) -> Setup:
    """Raises HubError, ConfigError and OptionError."""
    place = options.weights_cache_override or options.model_id or DEMO_MODEL
    folder = find_config(Source(str(place), options.revision, options.huggingface_hub_cache))
    _, config, _ = read_architecture(folder, options)
    card = target(options.device, devices(load_plugins()))
    options = attrs.evolve(options, num_shard=count_ranks(options, card.device, {}))
    return Setup(
        model=str(place),
        config=config,
        shapes=read_shapes(folder),
        target=card,
        ranks=options.num_shard or 1,
        dtype=options.compute_dtype,
        cache_item=cache_item(options, card.device),
        limits=model_limits(config, card.device, options),
        bucketing=Bucketing.from_options(options, Costs.of(block_size=card.device.block_size)),
        prefixes=options.prefix_caching and config.prefix_limit != 0,
        memory_fraction=options.memory_fraction,
        graph_memory_fraction=options.graph_memory_fraction,
    )


def model_limits(config: ModelConfig, device: DeviceSpec, options: Options) -> Limits:
    """What the options come to for this model on this device. Raises OptionError."""
    return resolve_limits(
        options,
        max_position=config.max_position,
        learned_positions=config.learned_positions,
        block_size=device.block_size,
        batch_size=device.batch_size,
        prefill_tokens=device.prefill_tokens,
        window=config.window,
    )


def count_ranks(options: Options, device: DeviceSpec, environment: Mapping[str, str] = environ) -> int:
    """How many ranks there shall be. Raises OptionError where they are more than cards, or not known."""
    name, cards = next(
        ((name, environment[name]) for name in device.card_variables if environment.get(name)), ("", "all")
    )
    listed = None if cards == "all" else len(cards.split(","))
    wanted = options.num_shard
    if wanted is None:
        if options.sharded != "true":
            return 1
        wanted = len(glob(device.card_files)) if listed is None else listed
        if wanted <= 1:
            raise OptionError(
                f"`sharded` is true but only found {wanted} cards of {device.name}: give --num-shard"
            )
    if listed is not None and wanted > listed:
        raise OptionError(f"--num-shard {wanted} is more than the {listed} cards in {name}")
    return wanted


def model_costs(folder: Path, config: ModelConfig, options: Options, card: Card, device: DeviceSpec) -> Costs:
    """What steps of the model of that folder cost on such cards. Raises ConfigError."""
    ranks, item, shapes = options.num_shard or 1, ITEM[options.compute_dtype], read_shapes(folder)
    roofline = Roofline.of(
        config,
        card,
        device=device,
        link=0.0,
        ranks=ranks,
        numbers=rank_numbers(config, shapes, ranks),
        weight_bytes=rank_bytes(config, shapes, ranks, item),
        item=item,
        cache_item=cache_item(options, device),
        block_size=device.block_size,
    )
    return roofline.costs


def cache_item(options: Options, device: DeviceSpec) -> int:
    """Bytes of a number in the KV cache. Raises ConfigError where the device has no such dtype."""
    name = options.kv_cache_dtype
    if name in (None, "auto"):
        return ITEM[options.compute_dtype]
    if name not in device.cache_dtypes:
        raise ConfigError(f"a KV cache of {name!r} is not supported on this device")
    return 1


def read_architecture(folder: Path, options: Options) -> tuple[Architecture, ModelConfig, dict[str, object]]:
    """Who runs the model of that folder, what it is, and what the options replace in its config.json.

    Raises ConfigError.
    """
    data = read_config_json(folder)
    overrides = options.config_overrides(data)
    return *find_architecture(folder, data | overrides), overrides
