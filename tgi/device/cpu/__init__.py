"""The CPU."""

from typing import TYPE_CHECKING

from tgi.plugins import Card, DeviceSpec

if TYPE_CHECKING:
    from .cpu_device import CpuDevice

SPEC = DeviceSpec(
    name="cpu",
    implementation="tgi.device.cpu:open_device",
    # Torch's OpenMP threads spin before they sleep, by default for so long that a rank whose cores are
    # shared, if only with the server, waits at every barrier for a thread that is not running.
    # And weights in huge pages, where the system allows them on request, are read faster.
    # Where oneDNN multiplies, it and torch each keep a program for every number of rows: 1024 of them,
    # which grow to 800 MiB within an hour. A quarter is enough for the numbers that are common.
    environment={
        "GOMP_SPINCOUNT": "3000",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
        "LRU_CACHE_CAPACITY": "256",
    },
    block_size=16,
    batch_size=32,
    prefill_tokens=512,
    compiles=False,
    mixes_rows=True,
    roundings=frozenset({"int8", "int4"}),
    keeps=frozenset({"int4", "int8", "nested", "tied"}),
    memory_fraction=0.5,  # others live on the machine, such as a second server
    cards={"cpu": Card()},
    doctor="tgi.device.cpu.cpu_checks:CpuDoctor",
)


def open_device(threads: int = 0) -> "CpuDevice":
    """Return the device with the kernels of tgi-cpu-kernels, or without them where they are not built."""
    from .cpu_device import CpuDevice

    try:
        from tgi_cpu_kernels import Unavailable
    except ImportError:
        return CpuDevice(threads, "tgi-cpu-kernels is not installed")
    from .kernel_device import KernelDevice

    try:
        return KernelDevice(threads)
    except Unavailable as error:
        return CpuDevice(threads, str(error))
