"""The CPU."""

from tgi.plugins import Card, DeviceSpec

SPEC = DeviceSpec(
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
    mixes_rows=True,
    cards={"cpu": Card()},
    doctor="tgi.device.cpu.cpu_checks:CpuDoctor",
)
