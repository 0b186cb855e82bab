"""NVIDIA GPUs."""

import re
from collections.abc import Sequence

import attrs

from tgi.device.costs import Costs, ModelSize
from tgi.plugins import Card, DeviceSpec
from tgi.plugins.machine import GIB, Machine

SPEC = DeviceSpec(
    name="cuda",
    implementation="tgi.device.cuda.cuda_device:CudaDevice",
    block_size=32,
    batch_size=128,
    prefill_tokens=4096,
    compiles=True,
    flat=True,
    card_variables=("CUDA_VISIBLE_DEVICES",),
    card_files="/dev/nvidia[0-9]*",
    node_resources={"CPU": 1.0, "GPU": 1.0},
    interface_variables=("NCCL_SOCKET_IFNAME",),
    roundings=frozenset({"int8", "int4", "fp8"}),
    keeps=frozenset({"int4", "int8", "fp8"}),
    memory_fraction=0.9,  # graphs and libraries take some that nobody counts
    fills_memory=True,
    # Peak rates and links from NVIDIA's data sheets of the SXM modules; memory as nvidia-smi shows it.
    cards={
        "h100": Card(memory_bytes=int(79.6 * GIB), flops=989e12, bandwidth=3.35e12, start=0.5e-3, link=450e9),
        "h200": Card(memory_bytes=int(140.4 * GIB), flops=989e12, bandwidth=4.8e12, start=0.5e-3, link=450e9),
        "a100": Card(memory_bytes=int(79.2 * GIB), flops=312e12, bandwidth=2.04e12, start=0.5e-3, link=300e9),
    },
    installed="tgi.device.cuda:installed_cards",
    costs="tgi.device.cuda:step_costs",
    doctor="tgi.device.cuda.nvidia_checks:NvidiaDoctor",
)


def installed_cards(machine: Machine) -> Sequence[str]:
    """Return the names of the GPUs that `SPEC.cards` has, as the driver tells them."""
    files = machine.files("/proc/driver/nvidia/gpus/*/information")
    words = {word.lower() for file in files for word in re.findall(r"\w+", file.read_text(errors="replace"))}
    return [name for name in SPEC.cards if name in words]


def step_costs(model: ModelSize, card: Card, block_size: int) -> Costs:
    """Return the costs of steps whose attention reads blocks where they are."""
    return attrs.evolve(Costs.of(model, card, block_size), mapping=0.0)
