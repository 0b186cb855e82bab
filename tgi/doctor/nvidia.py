"""What a host with NVIDIA GPUs is checked for, without opening one."""

import re
from collections.abc import Iterator

from tgi.config import Options

from .check import Check, fail, ok, warn
from .machine import Machine

NODES = "/dev/nvidia[0-9]*"
"""The files of GPUs."""
QUERY = ("nvidia-smi", "--query-gpu=index,memory.used,driver_version", "--format=csv,noheader,nounits")
IDLE = 1024
"""MiB of a GPU that are in use while nobody uses it, and some to spare."""


def check_nvidia(machine: Machine, options: Options) -> Iterator[Check]:
    """All of these; without a GPU the rest would say the same again."""
    found = check_gpus(machine, options.num_shard or 1)
    yield found
    if found.state != "fail":
        yield check_gpu_access(machine)
        yield check_gpu_memory(machine)


def check_gpus(machine: Machine, ranks: int) -> Check:
    """Whether there are any, and enough."""
    name, count = "cards", len(machine.files(NODES))
    if not count and machine.text("/proc/driver/nvidia/version"):
        advice = "Start the container with --gpus all, in Kubernetes with a limit of nvidia.com/gpu."
        return fail(name, "The driver of NVIDIA is loaded, and no GPU is to be seen here.", advice)
    if not count:
        advice = "Install NVIDIA's driver on a host with GPUs, or start with --device cpu."
        return fail(name, "There is no NVIDIA GPU in this machine, or no driver for it.", advice)
    listed = machine.environ.get("CUDA_VISIBLE_DEVICES")
    shown = count if listed is None else len([card for card in listed.split(",") if card])
    if ranks > shown:
        advice = f"Start with --num-shard {max(shown, 1)} or fewer, or name more in CUDA_VISIBLE_DEVICES."
        return fail(name, f"--num-shard {ranks}, and {shown} GPUs to be seen.", advice)
    return ok(name, f"{count} NVIDIA GPUs.")


def check_gpu_access(machine: Machine) -> Check:
    """Whether this user may open them."""
    barred = [node.name for node in machine.files("/dev/nvidia*") if not machine.may_use(node)]
    if barred:
        found = f"This user may not open {', '.join(barred)} in /dev."
        return fail(
            "access", found, "Start the container with --gpus all, or let this user write these files."
        )
    return ok("access", "This user may open all GPUs.")


def check_gpu_memory(machine: Machine) -> Check:
    """Whether others use them, by what nvidia-smi says."""
    name = "holders"
    answer = machine.run(QUERY)
    if answer is None:
        advice = (
            "Start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility to see who uses the GPUs."
        )
        return warn(name, "There is no nvidia-smi here.", advice)
    rows = re.findall(r"^\s*(\d+),\s*(\d+),\s*(\S+)", answer, re.MULTILINE)
    driver = f" Driver {rows[0][2]}." if rows else ""
    busy = [f"GPU {index} ({used} MiB)" for index, used, _ in rows if int(used) > IDLE]
    if busy:
        advice = "End what nvidia-smi lists, or leave them out of CUDA_VISIBLE_DEVICES: what is left is used."
        return warn(name, f"Others use memory of {', '.join(busy)}.{driver}", advice)
    return ok(name, f"Nobody uses the GPUs.{driver}")
