"""Checks of a host with NVIDIA GPUs that open no GPU."""

import re
from collections.abc import Iterator

from tgi.config import Options
from tgi.plugins.check import Check, Doctor, fail, ok, warn
from tgi.plugins.machine import Machine

from . import SPEC

QUERY = ("nvidia-smi", "--query-gpu=index,memory.used,driver_version", "--format=csv,noheader,nounits")
MAX_IDLE = 1024
"""Memory of a GPU that may be in use while no process has it, in MiB."""


class NvidiaDoctor(Doctor):
    """Checks of the driver and the GPUs."""

    advice = {  # noqa: RUF012
        "cannot be used here": "Install a build of torch for CUDA and NVIDIA's driver, or use --device cpu.",
        "out of memory": "Find the process that holds the GPU's memory with nvidia-smi, and end it.",
        "NCCL": "Set NCCL_DEBUG=INFO for the reason, and check the links with `nvidia-smi topo -m`.",
    }
    little_memory = (
        "Find the processes that hold the rest with nvidia-smi and end them: the KV cache gets what is left."
    )
    links = "Serve on one GPU, and check the links with `nvidia-smi topo -m`."

    def checks(self, machine: Machine, options: Options) -> Iterator[Check]:
        """Yield all checks, or the first one alone if it finds no GPU: the others would repeat it."""
        gpus = check_gpus(machine, options.ranks)
        yield gpus
        if gpus.state != "fail":
            yield check_gpu_access(machine)
            yield check_gpu_memory(machine)


def check_gpus(machine: Machine, ranks: int) -> Check:
    """Check that the machine has a GPU for every rank."""
    name, count = "cards", len(machine.files(SPEC.card_files))
    if not count and machine.text("/proc/driver/nvidia/version"):
        advice = "Start the container with --gpus all, or in Kubernetes with a limit of nvidia.com/gpu."
        return fail(name, "NVIDIA's driver is loaded, and no GPU is visible here.", advice)
    if not count:
        advice = "Install NVIDIA's driver on a host with GPUs, or start with --device cpu."
        return fail(name, "This machine has no NVIDIA GPU, or no driver for it.", advice)
    listed = machine.environ.get("CUDA_VISIBLE_DEVICES")
    visible = count if listed is None else len([card for card in listed.split(",") if card])
    if ranks > visible:
        advice = f"Start with --num-shard {max(visible, 1)} or fewer, or name more in CUDA_VISIBLE_DEVICES."
        return fail(name, f"--num-shard is {ranks}, and {visible} GPUs are visible.", advice)
    return ok(name, f"{count} NVIDIA GPUs.")


def check_gpu_access(machine: Machine) -> Check:
    """Check that this user may open the files of the GPUs."""
    barred = [node.name for node in machine.files("/dev/nvidia*") if not machine.may_use(node)]
    if not barred:
        return ok("access", "This user may open all GPUs.")
    found = f"This user may not open {', '.join(barred)} in /dev."
    advice = "Start the container with --gpus all, or let this user write these files."
    return fail("access", found, advice)


def check_gpu_memory(machine: Machine) -> Check:
    """Check with nvidia-smi that no other process uses the GPUs."""
    name = "holders"
    answer = machine.run(QUERY)
    if answer is None:
        advice = (
            "Start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility to see who uses the GPUs."
        )
        return warn(name, "nvidia-smi is not installed here.", advice)
    rows = re.findall(r"^\s*(\d+),\s*(\d+),\s*(\S+)", answer, re.MULTILINE)
    driver = f" Driver {rows[0][2]}." if rows else ""
    busy = [f"GPU {index} ({used} MiB)" for index, used, _ in rows if int(used) > MAX_IDLE]
    if busy:
        advice = "End the processes that nvidia-smi lists, or leave these GPUs out of CUDA_VISIBLE_DEVICES."
        return warn(name, f"Other processes use memory of {', '.join(busy)}.{driver}", advice)
    return ok(name, f"No process uses the GPUs.{driver}")
