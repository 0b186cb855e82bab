"""The start of the engine: from the options to a scheduler that runs on loaded, warmed-up ranks.

One coroutine, in the order in which things happen: find the model, read what it is, load, reserve the KV
cache, warm up, schedule. Each stage shows in the lifecycle.
"""

import functools
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from os import environ
from pathlib import Path
from typing import Any

import attrs
import trio

from tgi.agreement import Patience
from tgi.api.grammars import Grammars
from tgi.api.openai_parameters import MOST_CHAT_LOGPROBS
from tgi.api.service import Engine, ModelInfo, Service
from tgi.config import DEMO_MODEL, OptionError, Options, map_legacy_variables
from tgi.executor import EngineError, RankExecutor, open_executor
from tgi.hub import Source, fetch_model
from tgi.lifecycle import Phase
from tgi.limits import Limits, resolve_limits
from tgi.metrics import Metrics
from tgi.planning.cards import installed_card
from tgi.planning.memory import for_pool, plan_memory
from tgi.planning.recipes import (
    installed_generation,
    installed_software,
    recipe_environment,
    recipe_folder,
)
from tgi.planning.setup import count_ranks, model_costs, read_architecture
from tgi.plugins import (
    Architecture,
    ConfigError,
    DeviceSpec,
    ModelConfig,
    devices,
    load_plugins,
)
from tgi.protocol import Load, Loaded, Progress
from tgi.scheduler import Scheduler
from tgi.scheduler.bucketing import Bucketing, GraphsError, warm_up_seconds
from tgi.scheduler.buckets import Buckets
from tgi.scheduler.policy import TIES
from tgi.scheduler.workload import ShapeCounts
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarCompiler
from tgi.text.tokenizer import Tokenizer, TokenizerError

log = logging.getLogger(__name__)
DEMO_ID = "tgi-demo"
"""What `/info` calls the model that comes with the package."""
SAVE_SECONDS = 60.0
"""Between two times that the shapes of steps are saved: no more are lost when the server is killed."""


@attrs.frozen
class Model:
    """What is known of a model before it is loaded."""

    folder: Path
    architecture: Architecture
    config: ModelConfig
    device: DeviceSpec
    overrides: dict[str, object]
    """Keys of config.json that the options replace."""


async def run_engine(service: Service, options: Options) -> None:
    """Bring the engine up, put it into the service, and schedule for ever.

    Raises HubError, ConfigError, OptionError or EngineError (perhaps in a group), each with one line for
    people. Leaving it in any way ends the ranks.
    """
    lifecycle = service.lifecycle
    folder = await fetch_model(_source(options), lifecycle, {**environ, **map_legacy_variables()})
    lifecycle.enter("reading the model's description")
    model = await trio.to_thread.run_sync(describe_model, folder, options)
    options = attrs.evolve(options, num_shard=count_ranks(options, model.device))
    model.config.check_ranks(options.num_shard or 1)
    limits = service.limits = _limits(model, options)
    service.metrics = Metrics(limits.max_input_tokens, limits.max_total_tokens)
    tokenizer = await trio.to_thread.run_sync(read_tokenizer, folder)
    templates = await trio.to_thread.run_sync(read_templates, folder, options)
    grammars = Grammars(GrammarCompiler(tokenizer, model.config.vocab_size))
    shapes = known_shapes(model.device, options)
    buckets = await trio.to_thread.run_sync(choose_buckets, model, limits, options)
    environment = {**model.device.environment, **prepare_recipes(model, buckets, options)}
    async with aclosing(grammars), open_ranks(model, options, environment) as executor:
        async with trio.open_nursery() as nursery:
            if not options.disable_grammar_support:
                nursery.start_soon(grammars.prepare)
            loaded = await _load(executor, load_command(model, limits, buckets, options), service)
        scheduler, blocks = await _warm_scheduler(executor, model, loaded, buckets, shapes, service, options)
        service.engine = Engine(
            scheduler=scheduler,
            tokenizer=tokenizer,
            templates=templates,
            grammars=grammars,
            limits=limits,
            model=_model_info(options, model, loaded[0].dtype),
        )
        lifecycle.phase = Phase.READY
        _log_ready(service.engine.model, limits.block_size, blocks, loaded[0].block_bytes)
        await (scheduler.run() if shapes is None else save_shapes(shapes, scheduler.run))


async def save_shapes(shapes: ShapeCounts, run: Callable[[], Awaitable[None]]) -> None:
    """Save the shapes every SAVE_SECONDS while that runs, and at its end."""

    async def regularly() -> None:
        while True:
            await trio.sleep(SAVE_SECONDS)
            await trio.to_thread.run_sync(attrs.evolve(shapes, counts=dict(shapes.counts)).save)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(regularly)
            await run()
            nursery.cancel_scope.cancel()
    finally:
        shapes.save()


async def _warm_scheduler(
    executor: RankExecutor,
    model: Model,
    loaded: Sequence[Loaded],
    buckets: Buckets,
    shapes: ShapeCounts | None,
    service: Service,
    options: Options,
) -> tuple[Scheduler, int]:
    """Divide the memory that the ranks have left, and warm up; also how many KV blocks there are.

    Raises OptionError and EngineError.
    """
    limits, metrics = service.limits, service.metrics
    buckets = await trio.to_thread.run_sync(fit_buckets, model, limits, options, loaded, buckets)
    blocks = plan_blocks(loaded, model.device, limits, buckets, options, model.config)
    choose = functools.partial(choose_buckets, model, limits, options)
    buckets = await trio.to_thread.run_sync(for_pool, buckets, limits, blocks, choose)
    if loaded[0].total_bytes:
        metrics.device_memory_bytes.set(loaded[0].total_bytes, state="total")
    await executor.allocate(blocks + 1)
    prefix_limit = _prefix_limit(model, options)
    scheduler = Scheduler(
        executor, limits, model.device, blocks, metrics,
        prefix_limit=prefix_limit, buckets=buckets, shapes=shapes,
    )  # fmt: skip
    service.lifecycle.enter("warming up", expected=expected_warm_up(model, buckets))
    await scheduler.warm_up(
        _warm_up_report(service),
        timeout=options.warmup_timeout,
        skip=options.skip_warmup,
        budget=math.inf if options.warmup_budget is None else options.warmup_budget,
        fewer=functools.partial(fewer_buckets, model, limits, options, blocks=blocks, within=buckets.reads),
    )
    if not options.skip_warmup:
        await executor.ready()
    return scheduler, blocks


def _log_ready(info: ModelInfo, block_size: int, blocks: int, block_bytes: int) -> None:
    log.info(
        "Connected: %s in %s on %s; %d tokens fit into the KV cache of %.0f MiB",
        info.model_id, info.dtype, info.device, blocks * block_size, (blocks + 1) * block_bytes / 2**20,
    )  # fmt: skip


def _limits(model: Model, options: Options) -> Limits:
    return resolve_limits(
        options,
        max_position=model.config.max_position,
        learned_positions=model.config.learned_positions,
        block_size=model.device.block_size,
        batch_size=model.device.batch_size,
        prefill_tokens=model.device.prefill_tokens,
        window=model.config.window,
    )


def describe_model(folder: Path, options: Options) -> Model:
    """Read config.json and find the plugins for it. Raises ConfigError or OptionError."""
    plugins = load_plugins()
    for problem in plugins.problems:
        log.warning("%s", problem)
    architecture, config, overrides = read_architecture(folder, options)
    found = devices(plugins)
    if options.device not in found:
        raise OptionError(f"there is no device {options.device!r}; there are {', '.join(sorted(found))}")
    return Model(folder, architecture, config, found[options.device], overrides)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the folder. Raises ConfigError."""
    try:
        return Tokenizer.from_folder(folder)
    except TokenizerError as error:
        raise ConfigError(f"{folder}: the tokenizer cannot be read: {error}") from error


def read_templates(folder: Path, options: Options) -> ChatTemplates:
    """The chat templates of the folder, or of the files that the options name. Raises OptionError."""
    try:
        return ChatTemplates.from_folder(
            folder, tokenizer_config=options.tokenizer_config_path, template=options.chat_template
        )
    except OSError as error:
        raise OptionError(f"{error.filename} cannot be read: {error.strerror}") from error


def prepare_recipes(model: Model, buckets: Buckets, options: Options) -> dict[str, str]:
    """Make the folder for what a device compiles, if one is wanted; variables that tell the ranks of it.

    Raises OptionError.
    """
    if options.recipe_cache is None or not model.device.compiles:
        return {}
    folder = recipe_folder(
        options.recipe_cache.absolute(),
        model=options.model_id or DEMO_ID,
        config=attrs.asdict(model.config),
        dtype=options.compute_dtype,
        ranks=options.num_shard or 1,
        generation=installed_generation() or installed_card("", environ),
        software=installed_software(),
        buckets=buckets,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--recipe-cache: {error.filename} cannot be made: {error.strerror}") from error
    return recipe_environment(folder)


def choose_buckets(
    model: Model, limits: Limits, options: Options, graphs: int | None = None, **known: Any
) -> Buckets:
    """Those that steps are padded to, at most `graphs` of them; `known`: see `Buckets.from_limits`.

    Takes a moment. Raises ConfigError and OptionError.
    """
    device = model.device
    if not device.compiles:
        return Buckets.from_limits(limits, device)
    card = installed_card(installed_generation(), environ)
    costs = model_costs(model.folder, model.config, options, card, device)
    bucketing = Bucketing.from_options(options, costs, graphs)
    prefixes = _prefix_limit(model, options) != 0
    return Buckets.from_limits(limits, device, bucketing, prefixes=prefixes, **known)


def expected_warm_up(model: Model, buckets: Buckets) -> float | None:
    """How many seconds it will take; None where nothing is compiled in it."""
    if not model.device.compiles:
        return None
    return warm_up_seconds(len(buckets.to_warm_up()), model.config.num_layers)


def fewer_buckets(model: Model, limits: Limits, options: Options, graphs: int, **known: Any) -> Buckets:
    """Buckets for a warm-up that shall not take long: so many, or as few as are possible. Takes a moment.

    `known`: see `Buckets.from_limits`.
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
    model: Model, limits: Limits, options: Options, loaded: Sequence[Loaded], buckets: Buckets
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
        return choose_buckets(model, limits, options, graphs, within=buckets.reads)
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


def plan_blocks(
    loaded: Sequence[Loaded],
    device: DeviceSpec,
    limits: Limits,
    buckets: Buckets,
    options: Options,
    config: ModelConfig | None = None,
) -> int:
    """How many KV blocks to use beside the padding block; logs the plan of the memory.

    Raises EngineError where not even the longest request fits.
    """
    fraction = device.memory_fraction if options.memory_fraction is None else options.memory_fraction
    graphs = len(buckets.to_warm_up()) if device.compiles else 0
    plan = plan_memory(
        loaded, limits, config=config,
        graphs=graphs, fraction=fraction, graph_fraction=options.graph_memory_fraction,
    )  # fmt: skip
    refusal = plan.refusal(limits)
    log.log(logging.INFO if refusal is None else logging.ERROR, "Memory\n%s", plan)
    if refusal is not None:
        raise EngineError(refusal, "memory")
    if limits.max_batch_total_tokens is not None and plan.blocks < plan.wanted:
        log.warning(
            "--max-batch-total-tokens %d: there is memory for %d only",
            limits.max_batch_total_tokens, plan.blocks * limits.block_size,
        )  # fmt: skip
    return plan.blocks


def open_ranks(
    model: Model, options: Options, environment: Mapping[str, str]
) -> AbstractAsyncContextManager[RankExecutor]:
    """As many as the options say. Once it has compiled everything, no device that compiles is slow."""
    longest = options.warmup_timeout
    patience = Patience(step=60.0, compiling=longest) if model.device.compiles else Patience(step=longest)
    return open_executor(options.num_shard or 1, environment, patience)


async def _load(executor: RankExecutor, command: Load, service: Service) -> list[Loaded]:
    lifecycle = service.lifecycle
    lifecycle.enter("loading weights")

    def on_progress(ranks: list[Progress]) -> None:
        lifecycle.done = sum(rank.done for rank in ranks)
        lifecycle.total = sum(rank.total for rank in ranks)
        if len(ranks) > 1:
            lifecycle.detail = ", ".join(
                f"rank {index}: {100 * rank.done // max(rank.total, 1)} %" for index, rank in enumerate(ranks)
            )

    return await executor.load(command, on_progress)


def load_command(model: Model, limits: Limits, buckets: Buckets, options: Options) -> Load:
    """What the ranks are told to load, and how large the steps will be."""
    return Load(
        folder=str(model.folder),
        architecture=model.architecture.name,
        device=model.device.name,
        dtype=options.compute_dtype,
        threads=options.threads,
        lanes=limits.max_batch_size,
        block_size=limits.block_size,
        prefill_tokens=limits.max_batch_prefill_tokens,
        gathered_blocks=buckets.reads.blocks,
        listed_blocks=buckets.reads.listed,
        prefill_pairs=buckets.reads.pairs,
        dummy=options.load_format == "dummy",
        kv_cache_dtype="" if options.kv_cache_dtype in (None, "auto") else options.kv_cache_dtype,
        top=max(limits.max_top_n_tokens, MOST_CHAT_LOGPROBS) + TIES,
        overrides=model.overrides,
        watermark_gamma=options.watermark_gamma,
        watermark_delta=options.watermark_delta,
    )


def _prefix_limit(model: Model, options: Options) -> int | None:
    return model.config.prefix_limit if options.prefix_caching else 0


def _warm_up_report(service: Service) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, bucket: str) -> None:
        log.debug("warming up: %s", bucket)
        lifecycle = service.lifecycle
        lifecycle.done, lifecycle.total, lifecycle.detail = done, total, bucket

    return report


def _source(options: Options) -> Source:
    place = options.weights_cache_override or options.model_id or DEMO_MODEL
    return Source(
        str(place), options.revision, options.huggingface_hub_cache, load_format=options.load_format
    )


def _model_info(options: Options, model: Model, dtype: str) -> ModelInfo:
    folder = model.folder
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return ModelInfo(
        model_id=options.model_id or DEMO_ID,
        served_name=options.served_model_name or options.model_id or DEMO_ID,
        sha=commit,
        pipeline_tag="text-generation",
        dtype=dtype,
        device=model.device.name,
        vocab_size=model.config.vocab_size,
    )
