"""Memory and CPU time that the machine and its control groups (containers) leave to this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_ROOT = Path("/sys/fs/cgroup")
_RESERVE_SHARE = 0.05
"""Share of the memory that is kept free for the server process and others."""
_RESERVE_BYTES = 256 << 20
"""Least memory that is kept free for the server process and others, in bytes."""


def free_bytes(root: Path = _ROOT) -> int:
    """Return the bytes that the machine and its control groups can still give, less a reserve."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group in _groups(root):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(group / limit_name), _number(group / used_name)
            if limit is not None and used is not None and limit < machine.total:
                total, free = min(total, limit), min(free, limit - used + _reclaimable(group))
    return max(0, int(free - max(_RESERVE_BYTES, _RESERVE_SHARE * total)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the CPU quota of the control groups, in cores; None if they set no limit."""
    quotas = []
    for group in _groups(root):
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        v1, v1_period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if v1 is not None and v1_period and v1 > 0:
            quotas.append(v1 / v1_period)
    return min(quotas, default=None)


def usable_cores() -> int:
    """Return the number of physical cores that this process may use, within its CPU quota, rounded."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    quota = cpu_quota()
    return max(1, min(len(cores), int(quota + 0.5) if quota else len(cores)))


def _groups(root: Path) -> Iterator[Path]:
    """Yield this process's control groups and all around them; in version 1 those of a container's root."""
    yield from (root / "memory", root / "cpu")
    mine = Path("/proc/self/cgroup")
    for line in mine.read_text().splitlines() if mine.exists() else ():
        if line.startswith("0::"):
            path = root / line[3:].lstrip("/")
            yield path
            yield from (parent for parent in path.parents if parent.is_relative_to(root))


def _reclaimable(group: Path) -> int:
    """Return the bytes of file cache, such as a checkpoint just read, that the kernel can drop."""
    stat = group / "memory.stat"
    lines = stat.read_text().splitlines() if stat.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
