"""The engine: from the options to schedulers that run on loaded, warmed-up ranks, and on new ones if need be.

One coroutine, in the order in which things happen: find the model, start the ranks, let them describe the
model, choose buckets, load, divide the memory, warm up (`startup.py`), schedule. Each stage shows in the
lifecycle. If a rank is lost later, all of its replica are replaced, and sequences go on where they were.
"""

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import attrs
import trio

from tgi.agreement import Patience
from tgi.api.service import ModelInfo, Service
from tgi.config import DEMO_MODEL, OptionError, Options, hub_environment
from tgi.embedder import read_pooling, run_embedder
from tgi.errors import GenerationFailed
from tgi.executor import EngineError, RankExecutor, open_executor
from tgi.hub import Source, fetch_model, lora_source
from tgi.lifecycle import Lifecycle, Phase
from tgi.metrics import Metrics
from tgi.nodes.server import RayRanks
from tgi.planning.memory import MemoryBudget
from tgi.planning.recipes import prepare_recipes
from tgi.planning.setup import Setup, find_device, read_setup
from tgi.planning.workload import Recording, open_recording
from tgi.ranks import StartRanks, local_ranks
from tgi.scheduler import Router, Scheduler
from tgi.scheduler.loras import Loras
from tgi.startup import Startup, commit_of, read_tokenizer

log = logging.getLogger(__name__)
SAVE_SECONDS = 60.0
"""Interval, in seconds, at which the shapes of steps are saved: no more are lost if the server is killed."""
HOUR = 3600.0
STEADY_SECONDS = 5.0
"""Seconds after which ranks that are ready count as steady: their loss begins a new series of losses."""
MAX_PAUSE = 60.0
"""Maximum seconds between the loss of ranks and the start of others."""


async def run_engine(service: Service, options: Options) -> None:
    """Bring the engine up, put it into the service, and schedule for ever, on new ranks if some are lost.

    Raises HubError, ConfigError, OptionError or EngineError (perhaps in a group), each with one line for
    people. Leaving it in any way ends the ranks.
    """
    lifecycle, in_thread = service.lifecycle, trio.to_thread.run_sync
    folder = await fetch_model(_source(options), lifecycle, hub_environment())
    loras = {
        lora.name: await fetch_model(lora_source(options, lora), lifecycle, hub_environment())
        for lora in options.loras
    }
    lifecycle.enter("reading the model's description")
    pooling = await in_thread(read_pooling, folder, options)
    if pooling is not None:
        if options.room_for_loras:
            raise OptionError(
                "a model that gives vectors takes no LoRA adapters: leave out the flags for them"
            )
        await run_embedder(service, options, pooling, await in_thread(read_tokenizer, folder))
        return
    setup = await in_thread(
        lambda: read_setup(folder, options, find_device(options.device), loras=loras.values())
    )
    limits = service.limits = setup.limits()
    service.metrics = Metrics(limits.max_input_tokens, limits.max_total_tokens)
    service.metrics.engine_restarts.inc(0)  # it appears, so that alerts see the first restart
    shapes = open_recording(options, setup.device)
    async with AsyncExitStack() as held:
        startup = Startup(
            service=service,
            setup=setup,
            shapes=shapes,
            loras=Loras(setup.loras),
            lora_folders=loras,
            held=held,
        )
        replicas = _Replicas(service, setup, prepare_recipes(setup), startup)
        await (replicas.run() if shapes is None else save_shapes(shapes, replicas.run))


@attrs.define(eq=False)
class _Replicas:
    """All replicas of the model. The first plans; the others do as it did, and so do new ranks."""

    service: Service
    setup: Setup
    variables: Mapping[str, str]
    """Variables of the ranks besides those of the device."""
    startup: Startup

    async def run(self) -> None:
        """Start all, put the engine into the service, and schedule for ever."""
        service, lifecycle, others = self.service, self.service.lifecycle, range(1, self.setup.replicas)
        async with trio.open_nursery() as nursery:
            schedulers = {0: await nursery.start(self.run_one, 0)}

            async def start(number: int) -> None:
                schedulers[number] = await nursery.start(self.run_one, number)
                lifecycle.done += 1

            if others:
                lifecycle.enter("starting the other replicas", total=len(others))
            async with trio.open_nursery() as starting:
                for number in others:
                    starting.start_soon(start, number)
            router = Router(*(one for _, one in sorted(schedulers.items())))
            service.engine = self.startup.engine(router)
            lifecycle.change(Phase.READY)
            step = schedulers[0].schedule.costs.seconds(1)
            _log_ready(service.engine.model, self.startup.memory, self.setup.replicas, step, service.url)

    async def run_one(
        self, number: int, task_status: "trio.TaskStatus[Scheduler]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a replica, on new ranks if some are lost. Returns when it gives up and another does not.

        Raises EngineError, in a group, if the ranks cannot start, or if no replica is left.
        """
        restarts, scheduler = Restarts(self.setup.options.max_restarts), None
        ready: float | None = None
        start = _choose_start(self.setup, self.service.lifecycle, number)
        name = "" if self.setup.replicas == 1 else f"replica {number}: "
        while True:
            try:
                async with open_ranks(self.setup, self.variables, start) as executor:
                    if scheduler is None:
                        begin = self.startup.another if number else self.startup.first
                        scheduler = await begin(executor)
                        task_status.started(scheduler)
                    else:
                        await self._start_again(number, scheduler, executor)
                    ready = trio.current_time()
                    await scheduler.run()
            except (BaseExceptionGroup, EngineError) as error:
                loss = loss_in(error)
                draining = self.service.lifecycle.phase is Phase.DRAINING
                if loss is None or scheduler is None or self.service.engine is None or draining:
                    raise
                now = trio.current_time()
                pause = restarts.next_pause(now, 0.0 if ready is None else now - ready)
                ready = None
                if not self._lose(number, gives_up=pause is None):
                    raise
                scheduler.lose_ranks()
                if pause is None:
                    log.error("%s%s; giving up, after %s", name, loss, restarts)
                    scheduler.fail_all(GenerationFailed("the engine is lost"))
                    return
                log.error("%s%s; starting the ranks again, %s", name, loss, restarts)
                self.service.metrics.engine_restarts.inc()
                if pause and not self.service.engine.scheduler.serving:
                    self.service.lifecycle.enter(f"waiting {pause:.0f} s before the ranks start again")
                await trio.sleep(pause)

    async def _start_again(self, number: int, scheduler: Scheduler, executor: RankExecutor) -> None:
        """Bring new ranks to where the lost ones were. Raises EngineError."""
        began, engine, lifecycle = trio.current_time(), self.service.engine, self.service.lifecycle
        assert engine is not None
        scheduler.resume(executor)
        warm_up = await self.startup.again(executor, scheduler, lifecycle)
        engine.scheduler.replicas[number].serving = True
        lifecycle.change(Phase.READY)
        seconds = trio.current_time() - began
        log.info(
            "The ranks are back after %.2f s (start and loading %.2f s, warm-up %.2f s): %s",
            seconds, seconds - warm_up, warm_up, scheduler,
        )  # fmt: skip

    def _lose(self, number: int, *, gives_up: bool) -> bool:
        """Take a replica out of service; return whether any serves, or will again."""
        engine = self.service.engine
        assert engine is not None, "it has been ready"
        replica = engine.scheduler.replicas[number]
        replica.serving, replica.lost = False, gives_up
        if not engine.scheduler.serving:
            self.service.lifecycle.change(Phase.RECOVERING)
        return not all(one.lost for one in engine.scheduler.replicas)


@attrs.define
class Restarts:
    """Budget of restarts of the ranks: `limit` in an hour.

    The first follows at once. Where ranks are lost soon after they were ready, or before, the next ones
    follow after 1 s, 2 s, 4 s, …, at most MAX_PAUSE.
    """

    limit: int
    _times: list[float] = attrs.field(factory=list)
    """Times of the restarts in the last hour."""
    _series: int = 0
    """Losses in a row, each of ranks that had been ready for less than STEADY_SECONDS."""

    def next_pause(self, now: float, ready_seconds: float) -> float | None:
        """Return the seconds to wait before another restart at `now`; None: the budget is used up."""
        self._times = [time for time in self._times if time > now - HOUR]
        if len(self._times) >= self.limit:
            return None
        self._series = 1 if ready_seconds >= STEADY_SECONDS or not self._times else self._series + 1
        self._times.append(now)
        return 0.0 if self._series == 1 else min(2.0 ** min(self._series - 2, 10), MAX_PAUSE)

    def __str__(self) -> str:
        return f"{len(self._times)} of {self.limit} restarts in an hour (--max-restarts)"


def loss_in(error: BaseExceptionGroup | EngineError) -> EngineError | None:
    """Return the loss of the ranks that an error or a group consists of; None if it has any other error."""
    loss: BaseException = error
    if isinstance(error, BaseExceptionGroup):
        losses, others = error.split(EngineError)
        if losses is None or others is not None:
            return None
        loss = losses
    while isinstance(loss, BaseExceptionGroup):
        loss = loss.exceptions[0]
    assert isinstance(loss, EngineError)
    return loss


async def save_shapes(shapes: Recording, run: Callable[[], Awaitable[None]]) -> None:
    """Save the shapes every SAVE_SECONDS while `run` runs, and at its end."""

    async def regularly() -> None:
        while True:
            await trio.sleep(SAVE_SECONDS)
            await shapes.save()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(regularly)
            await run()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await shapes.save()


def _log_ready(info: ModelInfo, memory: MemoryBudget, replicas: int, step: float, url: str) -> None:
    """Log how much fits, and how long a step of one sequence takes, `step` in seconds."""
    cache = sum((group.blocks + 1) * group.block_bytes for group in memory.groups)
    log.info(
        "Connected: %s%s in %s on %s, %.3g ms for a step of one sequence; %d tokens fit into the KV cache "
        "of %.0f MiB. Chat at %s",
        "" if replicas == 1 else f"{replicas} replicas of ", info.model_id, info.dtype, info.device,
        1000 * step, memory.tokens, cache / 2**20, url,
    )  # fmt: skip


def _choose_start(setup: Setup, lifecycle: Lifecycle, replica: int) -> StartRanks:
    """Return the way to start the ranks of a replica that --executor chooses."""
    if setup.options.executor != "ray":
        return functools.partial(local_ranks, cards=setup.own_cards(replica))
    source = _source(setup.options)
    if Path(source.model_id).expanduser().is_dir():  # shared by all nodes
        source = attrs.evolve(source, model_id=str(Path(source.model_id).expanduser().absolute()))
    else:
        source = attrs.evolve(source, revision=commit_of(setup.folder) or source.revision)
    options = setup.options
    return RayRanks(options.ray_address, setup.device, source, lifecycle, options.ray_wait).start


def open_ranks(
    setup: Setup, variables: Mapping[str, str], start: StartRanks
) -> AbstractAsyncContextManager[RankExecutor]:
    """Start the ranks, with `variables` besides those of the device.

    Steps of a device that compiles are quick once it has compiled everything.
    """
    longest, environment = setup.options.warmup_timeout, {**setup.device.environment, **variables}
    patience = Patience(step=60.0, compiling=longest) if setup.device.compiles else Patience(step=longest)
    return open_executor(setup.ranks, environment, patience, start, setup.stages)


def _source(options: Options) -> Source:
    place = options.weights_cache_override or options.model_id or DEMO_MODEL
    return Source(
        str(place), options.revision, options.huggingface_hub_cache, load_format=options.load_format
    )
