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

import attrs
import trio

from tgi.agreement import Patience
from tgi.api.grammars import Grammars
from tgi.api.openai.types import MAX_CHAT_LOGPROBS
from tgi.api.service import Engine, ModelInfo, Service
from tgi.config import DEMO_MODEL, OptionError, Options, map_legacy_variables
from tgi.executor import RankExecutor, open_executor
from tgi.hub import Source, fetch_model
from tgi.lifecycle import Phase
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.planning.bucketing import attention_workspace
from tgi.planning.buckets import choose_buckets, expected_warm_up, fewer_buckets, fit_buckets, known_shapes
from tgi.planning.memory import for_pool, plan_blocks
from tgi.planning.model import DEMO_ID, Model, describe_model, prefix_limit
from tgi.planning.recipes import prepare_recipes
from tgi.planning.setup import count_ranks, model_limits
from tgi.planning.shapes import AttentionWorkspace
from tgi.planning.workload import ShapeCounts
from tgi.plugins import ConfigError
from tgi.protocol import Load, Loaded, Progress
from tgi.scheduler import Scheduler
from tgi.scheduler.allocator import BlockAllocator
from tgi.scheduler.blocks import BlockPool
from tgi.scheduler.buckets import Buckets
from tgi.scheduler.policy import TIES
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarCompiler
from tgi.text.tokenizer import Tokenizer, TokenizerError

log = logging.getLogger(__name__)
SAVE_SECONDS = 60.0
"""Between two times that the shapes of steps are saved: no more are lost when the server is killed."""


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
    limits = service.limits = model_limits(model.config, model.device, options)
    service.metrics = Metrics(limits.max_input_tokens, limits.max_total_tokens)
    tokenizer = await trio.to_thread.run_sync(read_tokenizer, folder)
    templates = await trio.to_thread.run_sync(read_templates, folder, options)
    grammars = Grammars(GrammarCompiler(tokenizer, model.config.vocab_size))
    shapes = known_shapes(model.device, options)
    buckets = await trio.to_thread.run_sync(choose_buckets, model, limits, options)
    attention = attention_workspace(limits, buckets, prefixes=prefix_limit(model, options) != 0)
    environment = {**model.device.environment, **prepare_recipes(model, buckets, options)}
    async with aclosing(grammars), open_ranks(model, options, environment) as executor:
        async with trio.open_nursery() as nursery:
            if not options.disable_grammar_support:
                nursery.start_soon(grammars.prepare)
            loaded = await _load(executor, load_command(model, limits, attention, options), service)
        scheduler, blocks = await _warm_scheduler(
            executor, model, loaded, buckets, attention, shapes, service, options
        )
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
    attention: AttentionWorkspace,
    shapes: ShapeCounts | None,
    service: Service,
    options: Options,
) -> tuple[Scheduler, int]:
    """Divide the memory that the ranks have left, and warm up; also how many KV blocks there are.

    Raises OptionError and EngineError.
    """
    limits, metrics = service.limits, service.metrics
    buckets = await trio.to_thread.run_sync(fit_buckets, model, limits, options, loaded, buckets, attention)
    blocks = plan_blocks(loaded, model.device, limits, buckets, options, model.config)
    choose = functools.partial(choose_buckets, model, limits, options, within=attention)
    buckets = await trio.to_thread.run_sync(for_pool, buckets, limits, blocks, choose)
    if loaded[0].total_bytes:
        metrics.device_memory_bytes.set(loaded[0].total_bytes, state="total")
    await executor.allocate(blocks + 1)
    pool = BlockPool(blocks, limits.block_size, limits.window)
    allocator = BlockAllocator(limits, [pool], prefix_limit(model, options))
    scheduler = Scheduler(
        executor, limits, buckets, allocator, metrics, count_shape=None if shapes is None else shapes.add
    )
    service.lifecycle.enter("warming up", expected=expected_warm_up(model, buckets))
    await scheduler.warm_up(
        _warm_up_report(service),
        timeout=options.warmup_timeout,
        skip=options.skip_warmup,
        budget=math.inf if options.warmup_budget is None else options.warmup_budget,
        fewer=functools.partial(fewer_buckets, model, limits, options, blocks=blocks, within=attention),
    )
    if not options.skip_warmup:
        await executor.ready()
    return scheduler, blocks


def _log_ready(info: ModelInfo, block_size: int, blocks: int, block_bytes: int) -> None:
    log.info(
        "Connected: %s in %s on %s; %d tokens fit into the KV cache of %.0f MiB",
        info.model_id, info.dtype, info.device, blocks * block_size, (blocks + 1) * block_bytes / 2**20,
    )  # fmt: skip


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


def load_command(model: Model, limits: Limits, attention: AttentionWorkspace, options: Options) -> Load:
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
        gathered_blocks=attention.blocks,
        listed_blocks=attention.listed,
        prefill_pairs=attention.pairs,
        dummy=options.load_format == "dummy",
        kv_cache_dtype="" if options.kv_cache_dtype in (None, "auto") else options.kv_cache_dtype,
        top=max(limits.max_top_n_tokens, MAX_CHAT_LOGPROBS) + TIES,
        overrides=model.overrides,
        watermark_gamma=options.watermark_gamma,
        watermark_delta=options.watermark_delta,
    )


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
