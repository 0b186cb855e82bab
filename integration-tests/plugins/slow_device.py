"""A device that takes its time: the CPU, with a pause in every step. Installed by being on PYTHONPATH."""

import os
import time
from typing import Any

from tgi.plugins import DeviceSpec, hookimpl


@hookimpl
def tgi_devices() -> list[DeviceSpec]:
    """One device."""
    return [
        DeviceSpec(
            name="slow",
            implementation="slow_device:make_device",
            block_size=16,
            batch_size=8,
            prefill_tokens=128,
            compiles=False,
        )
    ]


def make_device(threads: int) -> Any:
    """Made in rank processes only: here torch may be imported."""
    from tgi.device.cpu.cpu_device import CpuDevice

    class SlowDevice(CpuDevice):
        """Waits SLOW_SECONDS in each step."""

        def plan(self, *arguments: Any) -> Any:
            time.sleep(float(os.environ.get("SLOW_SECONDS", "0.1")))
            return super().plan(*arguments)

    return SlowDevice(threads)
