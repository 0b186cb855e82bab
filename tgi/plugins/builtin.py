"""The devices that come with the server, through the same hook as anybody's."""

from .device import DeviceSpec
from .hookspecs import hookimpl


@hookimpl
def tgi_devices() -> list[DeviceSpec]:
    """The CPU."""
    return [
        DeviceSpec(
            name="cpu",
            implementation="tgi.device.cpu:CpuDevice",
            block_size=16,
            batch_size=32,
            prefill_tokens=512,
            compiles=False,
        )
    ]
