"""Intel Gaudi."""

from collections.abc import Sequence
from pathlib import Path

from tgi.plugins import Card, DeviceSpec
from tgi.plugins.machine import GIB, Machine

SPEC = DeviceSpec(
    name="hpu",
    implementation="tgi.device.hpu.hpu_device:HpuDevice",
    # Weights are not shared between graphs as constants: each step's graph would be another one.
    environment={"PT_HPU_WEIGHT_SHARING": "0"},
    block_size=128,  # smaller ones leave the matrix engine idle
    batch_size=64,
    prefill_tokens=2048,
    compiles=True,
    flat=True,
    contiguous=True,
    card_variables=("HABANA_VISIBLE_MODULES", "HABANA_VISIBLE_DEVICES"),
    card_files="/dev/accel/accel[0-9]*",
    node_resources={"CPU": 1.0, "HPU": 1.0},
    interface_variables=("HCCL_SOCKET_IFNAME",),
    cache_dtypes=frozenset({"fp8_e4m3fn"}),
    roundings=frozenset({"fp8", "int4"}),
    keeps=frozenset({"int4", "fp8"}),
    memory_fraction=0.9,  # as vLLM's; the rest is for fragmentation, and for errors of the estimate
    fills_memory=True,  # a card serves one model alone
    # Memory as logs show it; peak rates from Intel's Hot Chips 2024 deck; 21 of 24 ports are links, and
    # three reach other boxes (docs.habana.ai, Intel Gaudi Network Configuration).
    cards={
        "gaudi2": Card(
            memory_bytes=int(94.62 * GIB),
            flops=432e12,
            bandwidth=2.46e12,
            start=0.8e-3,
            link=262.5e9,
            network=37.5e9,
        ),
        "gaudi3": Card(
            memory_bytes=int(126.5 * GIB),
            flops=1835e12,
            bandwidth=3.67e12,
            start=1.5e-3,
            link=525e9,
            network=75e9,
        ),
    },
    installed="tgi.device.hpu:installed_cards",
    compile_cache="tgi.device.hpu:recipe_variables",
    compile_packages=("habana-torch-plugin",),
    doctor="tgi.device.hpu.gaudi_checks:GaudiDoctor",
)
PCI_VENDOR = "0x1da3"
"""Habana's PCI vendor id."""
RECIPE_VARIABLE = "PT_HPU_RECIPE_CACHE_CONFIG"
"""Variable with the folder of the recipe cache, whether to empty it first, its limit in MB, and whether it is
on a network file system."""
RECIPE_MEGABYTES = 8192
"""Limit of the recipe cache, in MB."""


def pci_folders(machine: Machine) -> list[Path]:
    """Return the PCI devices that are Gaudi cards."""
    return [
        folder
        for folder in machine.files("/sys/bus/pci/devices/*")
        if read_text(folder / "vendor") == PCI_VENDOR
    ]


def installed_cards(machine: Machine) -> Sequence[str]:
    """Return the generation of each card by its PCI id: Gaudi2 begins with 0x1020, Gaudi3 with 0x1060."""
    ids = [read_text(folder / "device").removeprefix("0x") for folder in pci_folders(machine)]
    return ["gaudi3" if number.startswith("106") else "gaudi2" for number in ids]


def recipe_variables(folder: Path) -> dict[str, str]:
    """Return the variable that makes the bridge keep compiled recipes in a folder."""
    return {RECIPE_VARIABLE: f"{folder},false,{RECIPE_MEGABYTES},false"}


def read_text(path: Path) -> str:
    """Return the content of a small file, stripped; "" if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
