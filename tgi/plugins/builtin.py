"""The devices that come with the server, through the same hook as anybody's."""

from .device import DeviceSpec
from .hookspecs import hookimpl

GAUDI = DeviceSpec(
    name="hpu",
    implementation="tgi.device.hpu.hpu_device:HpuDevice",
    # Weights are not shared between graphs as constants: each step's graph would be another one.
    environment={"PT_HPU_WEIGHT_SHARING": "0"},
    block_size=128,  # smaller ones leave the matrix engine idle
    batch_size=64,
    prefill_tokens=2048,
    compiles=True,
    flat=True,
    cards=("HABANA_VISIBLE_MODULES", "HABANA_VISIBLE_DEVICES"),
    card_files="/dev/accel/accel[0-9]*",
    cache_dtypes=frozenset({"fp8_e4m3fn"}),
    memory_fraction=0.9,  # as vLLM's; for what is fragmented, or needed more than estimated
)


@hookimpl
def tgi_devices() -> list[DeviceSpec]:
    """Return the CPU, NVIDIA GPUs and Gaudi."""
    return [
        DeviceSpec(
            name="cpu",
            implementation="tgi.device.cpu.cpu_device:CpuDevice",
            # OpenMP threads spin before they sleep, by default for so long that a rank whose cores are
            # shared, if only with the server, waits at every barrier for a thread that is not running.
            # And weights in huge pages, where the system allows them on request, are read faster.
            environment={"GOMP_SPINCOUNT": "3000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
            block_size=16,
            batch_size=32,
            prefill_tokens=512,
            compiles=False,
        ),
        DeviceSpec(
            name="cuda",
            implementation="tgi.device.cuda.cuda_device:CudaDevice",
            block_size=32,
            batch_size=128,
            prefill_tokens=4096,
            compiles=True,
            flat=True,
            cards=("CUDA_VISIBLE_DEVICES",),
            card_files="/dev/nvidia[0-9]*",
            memory_fraction=0.9,  # graphs and libraries take some that nobody counts
        ),
        GAUDI,
    ]
