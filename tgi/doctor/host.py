"""Checks of every host: cores, memory, limits, the port."""

import errno
import re
import resource
from collections.abc import Iterator

from tgi.config import Options
from tgi.listen import ListenError, listen
from tgi.plugins.check import Check, fail, ok, warn
from tgi.plugins.machine import GIB, MIB, Machine

MIN_SHARED_MEMORY = 256 * MIB
"""Size of /dev/shm that ranks need; a container gets 64 MiB by default."""
MIN_MEMORY = 2 * GIB
"""Free memory below which a server is likely to fail."""
FILES = 256
"""File descriptors of the server itself."""
FILES_PER_REQUEST = 4
"""File descriptors for each concurrent request."""


def check_host(machine: Machine, options: Options) -> Iterator[Check]:
    """Yield all checks."""
    yield check_cores(machine, options)
    yield check_memory(machine)
    yield check_shared_memory(machine, options)
    yield check_files(options, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield check_port(options)


def check_cores(machine: Machine, options: Options) -> Check:
    """Check that the threads of all ranks have cores."""
    cores, quota = machine.cores, _quota(machine)
    usable = cores if quota is None else min(cores, quota)
    limit = (
        "" if quota is None or quota >= cores else f", limited by a control group to the time of {quota:g}"
    )
    found = f"This process may use {cores} cores{limit}."
    threads = options.threads * (1 if options.device == "cpu" else options.ranks)
    if threads > usable:
        return warn(
            "cores", f"{found} --threads asks for {threads}.", f"Start with --threads {max(int(usable), 1)}."
        )
    if usable < 2:
        return warn("cores", found, "Give the server a second core: one is for HTTP and scheduling.")
    return ok("cores", found)


def _quota(machine: Machine) -> float | None:
    """Return the CPU quota of the outermost control group that a container sees, in cores."""
    quota, _, period = machine.text("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def check_memory(machine: Machine) -> Check:
    """Check the free memory of the machine, or of a container."""
    total, free = machine.memory
    limit, used = (machine.text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    cached = re.search(r"^inactive_file (\d+)$", machine.text("/sys/fs/cgroup/memory.stat"), re.MULTILINE)
    inside = ""
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        left = int(limit) - int(used) + (int(cached[1]) if cached else 0)
        total, free, inside = int(limit), min(free, left), " of this container"
    found = f"{free / GIB:.1f} GiB of the {total / GIB:.1f} GiB{inside} are free."
    if free < MIN_MEMORY:
        return warn(
            "memory", found, "End the processes that use it, or give the container more with --memory."
        )
    return ok("memory", found)


def check_shared_memory(machine: Machine, options: Options) -> Check:
    """Check /dev/shm, through which ranks and the libraries of collectives exchange data."""
    name = "shared memory"
    try:
        size, _ = machine.disk(machine.path("/dev/shm"))
    except OSError:
        return warn(name, "/dev/shm does not exist.", "Mount a tmpfs there: several ranks need it.")
    found = f"/dev/shm has {size / MIB:,.0f} MiB."
    if size >= MIN_SHARED_MEMORY:
        return ok(name, found)
    advice = (
        "Start the container with --ipc=host or --shm-size=1g; in Kubernetes mount memory there (emptyDir)."
    )
    return (fail if options.ranks > 1 else warn)(name, found, advice)


def check_files(options: Options, limit: int) -> Check:
    """Check the limit of open files: every connection is one."""
    needed = FILES + FILES_PER_REQUEST * options.max_concurrent_requests
    found = f"A process may have {limit:,} files open."
    if limit != resource.RLIM_INFINITY and limit < needed:
        advice = (
            f"Raise it with `ulimit -n {needed}`, or lower --max-concurrent-requests "
            f"{options.max_concurrent_requests}."
        )
        return warn("open files", found, advice)
    return ok("open files", found)


def check_port(options: Options) -> Check:
    """Check that the server could listen."""
    name = "port"
    try:
        for listener in listen(options):
            listener.close()
    except ListenError as error:
        if error.errno == errno.EADDRINUSE and options.uds is None:
            advice = f"End that process (`ss -ltnp 'sport = :{options.port}'`), or choose another --port."
            return fail(name, f"Port {options.port} is already in use.", advice)
        advice = "Choose a --port of 1024 or above, and a --hostname of this machine, such as 0.0.0.0."
        return fail(name, f"The server {error}.", advice)
    return ok(name, f"Port {options.port} is free.")
