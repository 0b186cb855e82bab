"""The start of replicas: the first plans, loads and warms up; others do as it did, and so do new ranks."""

import functools
import logging
import math
import re
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import attrs
import trio

from tgi.api.grammars import Grammars
from tgi.api.openai.requests import MAX_CHAT_LOGPROBS
from tgi.api.service import Engine, ModelInfo, Service
from tgi.config import OptionError, Options
from tgi.executor import EngineError, RankExecutor
from tgi.lifecycle import Lifecycle
from tgi.planning.memory import MemoryBudget
from tgi.planning.planner import Planner
from tgi.planning.setup import Setup
from tgi.planning.workload import Recording
from tgi.plugins import ConfigError
from tgi.plugins.machine import Machine
from tgi.protocol import Load, Loaded, Progress
from tgi.scheduler import Buckets, Router, Scheduler
from tgi.scheduler.allocator import BlockAllocator
from tgi.scheduler.blocks import BlockPool, Prefixes
from tgi.scheduler.loras import LoraError, Loras
from tgi.scheduler.schedule import TIES
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarCompiler
from tgi.text.tokenizer import Tokenizer
from tgi.text.tokenizer_files import TokenizerError

log = logging.getLogger(__name__)


@attrs.define(eq=False, kw_only=True)
class Startup:
    """Starts replicas on ranks that run. `first` comes before everything else."""

    service: Service
    setup: Setup
    shapes: Recording | None
    loras: Loras
    """LoRA adapters of all replicas."""
    lora_folders: Mapping[str, Path]
    """Folders of those that the options name."""
    held: AsyncExitStack
    """Ends with the engine."""
    engine: Callable[[Router], Engine] = attrs.field(init=False)
    """Makes the engine of all replicas."""
    memory: MemoryBudget = attrs.field(init=False)
    _command: Load = attrs.field(init=False)
    _buckets: Buckets = attrs.field(init=False)
    """Buckets that were chosen, and could be warmed up in time."""
    _prefixes: Prefixes = attrs.field(factory=Prefixes, init=False)

    async def first(self, executor: RankExecutor) -> Scheduler:
        """Choose limits, buckets and blocks, and start the first replica. Raises ConfigError, EngineError."""
        service, setup, in_thread = self.service, self.setup, trio.to_thread.run_sync
        lifecycle, options = service.lifecycle, setup.options
        tokenizer = await in_thread(read_tokenizer, setup.folder)  # while the ranks start
        templates = await in_thread(read_templates, setup.folder, options)
        described = await executor.describe(setup.describe_command())
        if setup.loras.count and not described.lora_bytes:
            raise ConfigError(
                f"no layer of {setup.architecture} takes LoRA adapters: leave out the flags for them"
            )
        planner = await in_thread(Planner.open, setup, described, setup.device.card(Machine())[1])
        limits = service.limits = planner.limits
        buckets = await in_thread(planner.choose)
        attention = planner.attention(buckets)
        top, stages = max(limits.max_top_n_tokens, MAX_CHAT_LOGPROBS) + TIES, described.stage_layers
        self._command = setup.load_command(limits, attention, top=top, stages=stages)
        compiler = GrammarCompiler(tokenizer, described.vocab_size)
        grammars = await self.held.enter_async_context(aclosing(Grammars(compiler)))
        async with trio.open_nursery() as nursery:
            if not options.disable_grammar_support:
                nursery.start_soon(grammars.prepare)
            loaded = await load(executor, self._command, lifecycle)
            for remark in loaded[0].remarks:
                log.warning("%s: %s", setup.device.name, remark)
            self.memory = planner.divide_memory(loaded, buckets)
            check_memory(self.memory)
            if self.memory.rank.total_bytes:
                service.metrics.device_memory_bytes.set(self.memory.rank.total_bytes, state="total")
            self._buckets = await in_thread(planner.choose_again, buckets, self.memory, attention)
            scheduler, expected = self._scheduler(executor), planner.warm_up_seconds(self._buckets)
            fewer = functools.partial(planner.choose_few, blocks=self.memory.widest.blocks, within=attention)
            await self._warm_up(executor, scheduler, lifecycle, expected, fewer)
            self._buckets = scheduler.schedule.buckets
        await self._load_loras()
        self.engine = lambda router: Engine(
            scheduler=router,
            tokenizer=tokenizer,
            templates=templates,
            grammars=grammars,
            limits=limits,
            model=model_info(setup, loaded[0].dtype),
        )
        return scheduler

    async def another(self, executor: RankExecutor) -> Scheduler:
        """Start one more replica. Raises EngineError."""
        scheduler = self._scheduler(executor)
        await self.again(executor, scheduler, Lifecycle())
        return scheduler

    async def again(self, executor: RankExecutor, scheduler: Scheduler, lifecycle: Lifecycle) -> float:
        """Bring new ranks to where others were; return the seconds of the warm-up. Raises EngineError."""
        await load(executor, self._command, lifecycle)
        loaded = trio.current_time()
        await self._warm_up(executor, scheduler, lifecycle)
        return trio.current_time() - loaded

    def _scheduler(self, executor: RankExecutor) -> Scheduler:
        """Make the scheduler of a replica."""
        limits, options = self.service.limits, self.setup.options
        pools = [
            BlockPool(group.blocks, limits.block_size, group.window, self._prefixes, lowest=limits.contiguous)
            for group in self.memory.groups
        ]
        return Scheduler(
            executor,
            limits,
            self._buckets,
            BlockAllocator(limits, pools, self.setup.prefix_limit),
            self.service.metrics,
            count_shape=None if self.shapes is None else self.shapes.counts.add,
            loras=self.loras,
            step_timeout=options.step_timeout,
            max_queue_seconds=options.max_queue_seconds,
        )

    async def _warm_up(
        self,
        executor: RankExecutor,
        scheduler: Scheduler,
        lifecycle: Lifecycle,
        expected: float | None = None,
        fewer: Callable[[int], Buckets] | None = None,
    ) -> None:
        """Reserve the KV cache, padding blocks included, and warm up what the options ask for.

        `expected` is the time that this should take, in seconds; `fewer` is that of `Scheduler.warm_up`.
        Raises EngineError.
        """
        options = self.setup.options
        await executor.allocate(*(group.blocks + 1 for group in self.memory.groups))
        await scheduler.attach_loras()
        lifecycle.enter("warming up", expected=expected)

        def on_bucket(done: int, total: int, bucket: str) -> None:
            log.debug("warming up: %s", bucket)
            lifecycle.done, lifecycle.total, lifecycle.detail = done, total, bucket

        await scheduler.warm_up(
            on_bucket,
            timeout=options.warmup_timeout,
            skip=options.skip_warmup,
            budget=math.inf if options.warmup_budget is None else options.warmup_budget,
            fewer=fewer,
        )
        if not options.skip_warmup:
            await executor.ready()

    async def _load_loras(self) -> None:
        """Load the LoRA adapters that the options name. Raises ConfigError."""
        for source in self.setup.options.loras:
            try:
                await self.loras.load(source.name, source.place, str(self.lora_folders[source.name]))
            except LoraError as error:
                raise ConfigError(str(error)) from error


def check_memory(memory: MemoryBudget) -> None:
    """Log the division of the memory. Raises EngineError if not even the longest request fits."""
    refusal, tokens = memory.refusal, memory.limits.max_batch_total_tokens
    for line in str(memory).splitlines():
        log.log(logging.INFO if refusal is None else logging.ERROR, "%s", line)
    if refusal is not None:
        raise EngineError(refusal, "memory")
    if tokens is not None and memory.widest.fitting < memory.widest.wanted:
        log.warning("--max-batch-total-tokens %d: there is memory for %d only", tokens, memory.tokens)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder. Raises ConfigError."""
    try:
        return Tokenizer.from_folder(folder)
    except TokenizerError as error:
        raise ConfigError(f"{folder}: the tokenizer cannot be read: {error}") from error


def read_templates(folder: Path, options: Options) -> ChatTemplates:
    """Read the chat templates of a folder, or of the files that the options name. Raises OptionError."""
    try:
        return ChatTemplates.from_folder(
            folder, tokenizer_config=options.tokenizer_config_path, template=options.chat_template
        )
    except OSError as error:
        raise OptionError(f"{error.filename} cannot be read: {error.strerror}") from error


async def load(executor: RankExecutor, command: Load, lifecycle: Lifecycle) -> list[Loaded]:
    """Load the weights on all ranks, and show how far they are. Raises EngineError."""
    lifecycle.enter("loading weights")

    def on_progress(ranks: list[Progress]) -> None:
        lifecycle.done = sum(rank.done for rank in ranks)
        lifecycle.total = sum(rank.total for rank in ranks)
        if len(ranks) > 1:
            lifecycle.detail = ", ".join(
                f"rank {index}: {100 * rank.done // max(rank.total, 1)} %" for index, rank in enumerate(ranks)
            )

    return await executor.load(command, on_progress)


def model_info(setup: Setup, dtype: str) -> ModelInfo:
    """Return what `/info` says about a model."""
    return ModelInfo(
        model_id=setup.model_id,
        served_name=setup.options.served_model_name or setup.model_id,
        sha=commit_of(setup.folder),
        pipeline_tag="text-generation",
        dtype=dtype,
        device=setup.device.name,
        vocab_size=setup.config.vocab_size,
    )


def commit_of(folder: Path) -> str | None:
    """Return the commit of a folder in the Hub's cache; None for any other folder."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
