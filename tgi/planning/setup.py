"""Facts known before any rank starts: the options, the model's config.json and the device."""

import logging
import math
from collections.abc import Iterable, Mapping
from glob import glob
from os import environ
from pathlib import Path

import attrs

from tgi.config import LORA_RANK, ROUNDINGS, OptionError, Options
from tgi.device.cgroups import usable_cores
from tgi.limits import Limits
from tgi.plugins import ConfigError, DeviceSpec, ModelConfig, devices, load_plugins
from tgi.plugins.lookup import find_architecture, read_config_json
from tgi.plugins.lora_config import LoraConfig
from tgi.protocol import NO_LORAS, AttentionWorkspace, CacheGroup, Describe, Load, LoraSlots

log = logging.getLogger(__name__)
DEFAULT_TOTAL_TOKENS = 4096
DEMO_ID = "tgi-demo"
"""Name in `/info` of the model that comes with the package."""


@attrs.frozen(kw_only=True)
class Setup:
    """A model, its device and the options: all that a plan is made from, besides the model's description."""

    options: Options
    folder: Path
    """Folder of the checkpoint."""
    architecture: str
    """Name under which a plugin offers the model."""
    config: ModelConfig
    overrides: dict[str, object]
    """Keys that the options replace in config.json."""
    device: DeviceSpec
    shards: int
    """Number of ranks that each layer is divided over."""
    loras: LoraSlots = NO_LORAS

    @property
    def stages(self) -> int:
        """Number of stages that the layers are divided into."""
        return self.options.pipeline_parallel_size

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.shards * self.stages

    @property
    def model_id(self) -> str:
        """Name of the model, as the operator gives it."""
        return self.options.model_id or DEMO_ID

    @property
    def replicas(self) -> int:
        """Number of copies of the model."""
        return self.options.replicas

    @property
    def prefix_limit(self) -> int | None:
        """Longest prompt, in tokens, that may share prefixes; None: any, 0: none."""
        return self.config.prefix_limit if self.options.prefix_caching else 0

    @property
    def contiguous(self) -> bool:
        """Whether decode steps read the KV cache in one piece."""
        possible = self.device.contiguous and self.stages == 1 and self.prefix_limit == 0
        return possible and self.options.contiguous_cache

    @property
    def memory_fraction(self) -> float:
        """Share of the memory, after weights and workspace, that is used."""
        fraction = self.options.memory_fraction
        return self.device.memory_fraction if fraction is None else fraction

    def limits(self, groups: Iterable[CacheGroup] = (), batch_size: int | None = None) -> Limits:
        """Resolve the limits, those that depend on attention windows by the model's layer groups.

        Without groups, the limits are preliminary. `batch_size` is the default of --max-batch-size; None: the
        device's. Raises OptionError.
        """
        windows = [group.window for group in groups]
        options = self.options if windows else attrs.evolve(self.options, max_batch_total_tokens=None)
        return resolve_limits(
            options,
            max_position=self.config.max_position,
            learned_positions=self.config.learned_positions,
            block_size=self.device.block_size,
            batch_size=batch_size or self.device.batch_size,
            prefill_tokens=self.device.prefill_tokens,
            window=widest_window(windows),
            stages=self.stages,
            speculate=options.speculate if self.device.mixes_rows else 0,
            contiguous=self.contiguous,
        )

    def describe_command(self) -> Describe:
        """Return the command that asks a rank for the description. Raises ConfigError."""
        cache_dtype = self._cache_dtype()
        if cache_dtype and cache_dtype not in self.device.cache_dtypes:
            raise ConfigError(f"a KV cache of {cache_dtype!r} is not supported on this device")
        quantize = self.options.quantization
        if quantize in ROUNDINGS and quantize not in self.device.roundings:
            other = " or ".join(sorted(self.device.roundings))
            raise ConfigError(
                f"--quantize {quantize} is not supported on --device {self.device.name}"
                + (f"; {other} is" if other else "")
            )
        return Describe(
            folder=str(self.folder),
            architecture=self.architecture,
            ranks=self.shards,
            stages=self.stages,
            dtype=self.options.compute_dtype,
            kv_cache_dtype=cache_dtype,
            dummy=self.options.load_format == "dummy",
            check=False,
            overrides=self.overrides,
            quantize=quantize,
            quant_config=self._quant_config,
            keeps=sorted(self.device.keeps),
            expert_parallel=self.options.expert_parallel,
            loras=self.loras,
        )

    def load_command(
        self,
        limits: Limits,
        attention: AttentionWorkspace,
        *,
        top: int = 0,
        stages: tuple[int, ...] = (),
    ) -> Load:
        """Return the command that loads the model, with the extent of the largest steps.

        A step reports up to `top` most likely tokens. `stages` are the layers of each stage.
        """
        options = self.options
        return Load(
            folder=str(self.folder),
            architecture=self.architecture,
            device=self.device.name,
            dtype=options.compute_dtype,
            threads=self._threads,
            lanes=limits.max_batch_size,
            block_size=limits.block_size,
            contiguous=limits.contiguous,
            max_tokens=limits.max_total_tokens,
            prefill_tokens=limits.max_batch_prefill_tokens,
            attention=attention,
            dummy=options.load_format == "dummy",
            kv_cache_dtype=self._cache_dtype(),
            top=top,
            overrides=self.overrides,
            quantize=self.options.quantization,
            quant_config=self._quant_config,
            expert_parallel=options.expert_parallel,
            watermark_gamma=options.watermark_gamma,
            watermark_delta=options.watermark_delta,
            stages=stages,
            loras=self.loras,
        )

    @property
    def _threads(self) -> int:
        """CPU threads of a replica; 0: as many as the device likes."""
        threads = self.options.threads
        return threads if self.replicas == 1 else max(1, (threads or usable_cores()) // self.replicas)

    def own_cards(self, replica: int, environment: Mapping[str, str] = environ) -> dict[str, str]:
        """Return the variable that gives a replica its cards; {} if it has all, or the device has none."""
        if self.replicas == 1 or not self.device.card_variables:
            return {}
        name, first = self.device.card_variables[0], replica * self.ranks
        listed = environment.get(name) or "all"
        last = first + self.ranks
        cards = [str(card) for card in range(last)] if listed == "all" else listed.split(",")
        return {name: ",".join(cards[first:last])}

    @property
    def _quant_config(self) -> str:
        file = self.options.quant_config
        return "" if file is None else str(file.absolute())

    def _cache_dtype(self) -> str:
        name = self.options.kv_cache_dtype
        return "" if name in (None, "auto") else name


def read_setup(
    folder: Path,
    options: Options,
    device: DeviceSpec,
    environment: Mapping[str, str] = environ,
    loras: Iterable[Path] = (),
) -> Setup:
    """Read config.json and find who runs the model, with LoRA adapters from these folders.

    Raises ConfigError and OptionError.
    """
    data = read_config_json(folder)
    overrides = options.config_overrides(data)
    architecture, config = find_architecture(folder, data | overrides)
    if options.speculate and not device.mixes_rows:
        log.warning("--speculate has no effect on --device %s: its steps do not mix rows", device.name)
    setup = Setup(
        options=options,
        folder=folder,
        architecture=architecture.name,
        config=config,
        overrides=overrides,
        device=device,
        shards=count_shards(options, device, environment),
        loras=lora_slots(options, loras),
    )
    if options.contiguous_cache and not setup.contiguous:
        log.warning(
            "--contiguous-cache has no effect: it needs --no-prefix-caching, a single stage, and a device "
            "that compiles steps over one list of blocks"
        )
    return setup


def lora_slots(options: Options, folders: Iterable[Path]) -> LoraSlots:
    """Return the room for LoRA adapters, of which some are in these folders. Raises ConfigError."""
    count = options.room_for_loras
    ranks = [LoraConfig.read(folder).max_rank for folder in folders]
    rank = max([*ranks, LORA_RANK if options.enable_lora else 1])
    return LoraSlots(count, options.max_lora_rank or rank) if count else NO_LORAS


def resolve_limits(
    options: Options,
    *,
    max_position: int,
    block_size: int,
    batch_size: int,
    prefill_tokens: int,
    window: int | None = None,
    stages: int = 1,
    speculate: int = 0,
    learned_positions: int | None = None,
    contiguous: bool = False,
) -> Limits:
    """Resolve the options for a model made for `max_position` tokens, on a device with these defaults.

    Raises OptionError with TGI's texts. The prefill budget may be below the longest prompt, which is then
    prefilled in chunks. --max-total-tokens may exceed `max_position`, but not the number of positions of a
    model that has learned each of them (`learned_positions`).
    """
    wanted = options.max_input_tokens if options.max_input_length is None else options.max_input_length
    total = options.max_total_tokens
    if total is None:
        total = min(max_position, max(DEFAULT_TOTAL_TOKENS, 0 if wanted is None else wanted + 1))
    if learned_positions is not None and total > learned_positions:
        raise OptionError(
            f"`max_total_tokens` must be <= {learned_positions}, how many positions this model has. "
            f"Given: {total}"
        )
    if total < 2:
        raise OptionError(
            "`max_total_tokens` must be >= 2, for one token of the prompt and one of the answer. "
            f"Given: {total}"
        )
    longest_prompt = total - 1 if wanted is None else wanted
    if longest_prompt < 1:
        raise OptionError(f"`max_input_tokens` must be >= 1. Given: {longest_prompt}")
    if longest_prompt >= total:
        raise OptionError(f"`max_input_tokens`({longest_prompt}) must be < `max_total_tokens`({total})")
    limits = Limits(
        max_concurrent_requests=options.max_concurrent_requests,
        max_best_of=options.max_best_of,
        max_stop_sequences=options.max_stop_sequences,
        max_top_n_tokens=options.max_top_n_tokens,
        max_input_tokens=longest_prompt,
        max_total_tokens=total,
        max_batch_prefill_tokens=options.max_batch_prefill_tokens or prefill_tokens,
        max_batch_size=options.max_batch_size or batch_size,
        max_batch_total_tokens=options.max_batch_total_tokens,
        waiting_served_ratio=options.waiting_served_ratio,
        speculate=speculate,
        stages=stages,
        contiguous=contiguous,
        max_waiting_tokens=options.max_waiting_tokens,
        block_size=block_size,
        window=None if window is None or window >= total else window,
        max_client_batch_size=options.max_client_batch_size,
        payload_limit=options.payload_limit,
    )
    batch_total, needed = limits.max_batch_total_tokens, limits.sequence_tokens
    if batch_total is not None and needed > batch_total:
        raise OptionError(
            f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch_total}"
            if needed == total
            else f"`max_batch_total_tokens` must be >= {needed}, a part of a prompt and the window before "
            f"it. Given: {batch_total}"
        )
    return limits


def widest_window(windows: Iterable[int | None]) -> int | None:
    """Return the widest of some attention windows; None if one sees everything, or for no window."""
    sizes = [math.inf if window is None else window for window in windows]
    widest = max(sizes, default=math.inf)
    return None if widest == math.inf else int(widest)


def find_device(name: str) -> DeviceSpec:
    """Return the device of that name, and log what is wrong with plugins. Raises OptionError."""
    plugins = load_plugins()
    for problem in plugins.problems:
        log.warning("%s", problem)
    known = devices(plugins)
    if name not in known:
        raise OptionError(f"no device is named {name!r}; known are {', '.join(sorted(known))}")
    return known[name]


def _times(options: Options) -> str:
    """Return the options that say how often the ranks of a stage exist, of those that are above 1."""
    names = {"--pipeline-parallel-size": options.pipeline_parallel_size, "--replicas": options.replicas}
    return " times ".join(f"{name} {number}" for name, number in names.items() if number > 1)


def count_shards(options: Options, device: DeviceSpec, environment: Mapping[str, str] = environ) -> int:
    """Return the number of ranks of a stage.

    Raises OptionError if it is unknown, or exceeds the cards.
    """
    if options.executor == "ray":  # the cards are on other machines
        if options.sharded == "true" and options.num_shard is None:
            raise OptionError("--executor ray needs --num-shard: `sharded` counts the cards of one machine")
        return options.num_shard or 1
    stages = options.pipeline_parallel_size
    name, cards = next(
        ((name, environment[name]) for name in device.card_variables if environment.get(name)), ("", "all")
    )
    listed = None if cards == "all" else len(cards.split(","))
    wanted = options.num_shard
    if wanted is None and options.sharded != "true":
        wanted = 1
    if wanted is None:
        found = len(glob(device.card_files)) if listed is None else listed
        if found <= 1:
            raise OptionError(
                f"`sharded` is true but only found {found} cards of {device.name}: give --num-shard"
            )
        if found % (stages * options.replicas):
            flags = _times(options)
            raise OptionError(
                f"--sharded true would use {found} cards, which {flags} does not divide: give --num-shard, "
                "the number of ranks of each stage"
            )
        wanted = found // (stages * options.replicas)
    if listed is not None and wanted * stages * options.replicas > listed:
        each = f" times {_times(options)}" if stages * options.replicas > 1 else ""
        raise OptionError(f"--num-shard {wanted}{each} is more than the {listed} cards in {name}")
    return wanted
