"""Devices of another package, installed by being on PYTHONPATH: a slow one, one that fails, and an example.

The example is all that a device can tell of itself: cards, costs, a cache of what it compiles, a doctor.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tgi.config import Options
from tgi.device.costs import Costs, ModelSize
from tgi.plugins import Card, DeviceSpec, hookimpl
from tgi.plugins.check import Check, Doctor, ok
from tgi.plugins.machine import Machine

CACHE = "EXAMPLE_CACHE"


@hookimpl
def tgi_devices() -> list[DeviceSpec]:
    """Return all."""
    slow = DeviceSpec(
        name="slow",
        implementation="slow_device:make_slow",
        block_size=16,
        batch_size=8,
        prefill_tokens=128,
        compiles=False,
    )
    example = DeviceSpec(
        name="example",
        implementation="slow_device:make_example",
        block_size=16,
        batch_size=8,
        prefill_tokens=128,
        compiles=True,
        flat=True,
        cards={
            "example-rows": Card(memory_bytes=8 << 30, flops=1e3, bandwidth=1e9),
            "example-blocks": Card(memory_bytes=8 << 30, flops=1e9, bandwidth=1e3),
        },
        installed="slow_device:installed_cards",
        costs="slow_device:step_costs",
        compile_cache="slow_device:cache_variables",
        compile_packages=("slow-device",),
        doctor="slow_device:ExampleDoctor",
    )
    return [slow, attrs.evolve(slow, name="failing", implementation="slow_device:make_failing"), example]


def installed_cards(machine: Machine) -> Sequence[str]:
    """Return the card that a variable names."""
    return [machine.environ["EXAMPLE_CARD"]] if "EXAMPLE_CARD" in machine.environ else []


def step_costs(_: ModelSize, card: Card, block_size: int) -> Costs:
    """Return the costs of a card on which only rows and blocks take time."""
    return Costs(
        start=1e-3,
        weights=0.0,
        token=0.0,
        pair=0.0,
        mapping=0.0,
        block=1 / card.bandwidth,
        row=1 / card.flops,
        block_size=block_size,
    )


def cache_variables(folder: Path) -> dict[str, str]:
    """Return the variable that the example reads."""
    return {CACHE: str(folder)}


class ExampleDoctor(Doctor):
    """A check that tells the card."""

    links = "Do not use several."

    def checks(self, machine: Machine, options: Options) -> Iterator[Check]:
        """Yield the check."""
        cards = ", ".join(installed_cards(machine))
        yield ok("example", f"The card is {cards}, for {options.num_shard} ranks.")


def make_slow(threads: int) -> Any:
    """Make it, in rank processes only: here torch may be imported."""
    from tgi.device.cpu.cpu_device import CpuDevice

    class SlowDevice(CpuDevice):
        """Waits SLOW_SECONDS in each step."""

        def plan(self, *arguments: Any) -> Any:
            time.sleep(float(os.environ.get("SLOW_SECONDS", "0.1")))
            return super().plan(*arguments)

    return SlowDevice(threads)


def make_failing(threads: int) -> Any:
    """Make a slow device in a rank that does FAULT with each step in which the token FAULTY_TOKEN is a query.

    FAULT is "kill", "raise", or "exhaust", which is out of memory.
    """
    import torch

    from tgi.protocol import Step, unpack_ints
    from tgi.worker.runner import Runner

    def fail() -> None:
        if os.environ["FAULT"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["FAULT"] == "exhaust":
            torch.empty(1 << 60)
        raise RuntimeError("planted")

    def watch(step: Step) -> Step:
        if int(os.environ["FAULTY_TOKEN"]) in unpack_ints(step.tokens):
            fail()
        return step

    execute, launch = Runner.execute, Runner.launch
    Runner.execute = lambda self, step: execute(self, watch(step))  # type: ignore[method-assign]
    Runner.launch = lambda self, step: launch(self, watch(step))  # type: ignore[method-assign]
    return make_slow(threads)


def make_example(threads: int) -> Any:
    """Make a device of plain operations on whole blocks, which notes in its cache that it was opened."""
    from tgi.device.static import StaticDevice

    class ExampleDevice(StaticDevice):
        """Has a probe of its own."""

        def probes(self) -> Mapping[str, Callable[[], Check]]:
            return {"blocks": lambda: ok("blocks", f"A block has {self.spec.block_size} tokens.")}

    if CACHE in os.environ:
        (Path(os.environ[CACHE]) / "opened").touch()
    return ExampleDevice(threads)
