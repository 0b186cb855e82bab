"""The whole engine in this process, with its one rank, so that a start costs no new process."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from tgi import engine
from tgi.api.service import Service
from tgi.cli import parse_options
from tgi.config import Options
from tgi.device.base import Device
from tgi.layers.loading import describe
from tgi.lifecycle import Lifecycle, Phase
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.planning.setup import Setup
from tgi.plugins import DeviceSpec
from tgi.protocol import Describe, Described, Load, Loaded, LoadLora, Result, Step
from tgi.weights import Shard
from tgi.worker.runner import Runner


@attrs.define(eq=False)
class LocalRank:
    """One rank on an open device; takes what `tgi.executor.RankExecutor` takes."""

    device: Device
    runner: Runner | None = None
    results: deque[Result] = attrs.field(factory=deque)

    async def describe(self, command: Describe) -> Described:
        """Describe the model."""
        return describe(command)

    async def load(self, command: Load, _on_progress: Callable[..., None]) -> list[Loaded]:
        """Read the model."""
        self.runner = Runner.load(command, Shard(), self.device)
        return [self.runner.loaded]

    async def allocate(self, *blocks: int) -> None:
        """Reserve the KV cache."""
        assert self.runner is not None
        self.runner.allocate(*blocks)

    async def load_lora(self, slot: int, folder: str) -> str:
        """Put a LoRA adapter into a slot."""
        assert self.runner is not None
        return self.runner.load_lora(LoadLora(0, slot, folder)).fault

    async def ready(self) -> None:
        """End the warm-up."""
        assert self.runner is not None
        self.runner.seal()

    async def send(self, step: Step) -> None:
        """Carry out a step."""
        assert self.runner is not None
        self.results.append(self.runner.execute(step))

    async def receive(self) -> Result:
        """Return the oldest result."""
        await trio.lowlevel.checkpoint()
        return self.results.popleft()


@asynccontextmanager
async def started(
    arguments: list[str], device: Device, spec: DeviceSpec, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """Start the engine as a command line says, and schedule while the body runs."""

    @asynccontextmanager
    async def open_ranks(_setup: Setup, _variables: Mapping[str, str], _start: object) -> AsyncIterator[Any]:
        yield LocalRank(device)

    device.spec = spec
    monkeypatch.setattr(engine, "open_ranks", open_ranks)
    monkeypatch.setattr(engine, "find_device", lambda _name: spec)
    options: Options = parse_options(arguments)
    for _warning in options.checked({}):
        pass
    service = Service(limits=Limits(), lifecycle=Lifecycle(), metrics=Metrics(), options=options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run_engine, service, options)
        while service.lifecycle.phase is not Phase.READY:
            await trio.sleep(0.005)
        yield service
        nursery.cancel_scope.cancel()
