"""What every host is checked for: cores, memory, limits, the port."""

import errno
import re
import resource
import socket
from collections.abc import Iterator

from tgi.config import Options

from .check import Check, fail, ok, warn
from .machine import GIB, MIB, Machine

LEAST_SHM = 256 * MIB
"""A container gets 64 MiB unless it is told otherwise."""
LEAST_MEMORY = 2 * GIB
MOST_REQUESTS_FILES = 4
"""Descriptors for each concurrent request, with some to spare."""
FILES = 256
"""And those of the server itself."""


def check_host(machine: Machine, options: Options) -> Iterator[Check]:
    """All of these."""
    yield check_cores(machine, options)
    yield check_memory(machine)
    yield check_shared_memory(machine, options)
    yield check_files(options, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield check_port(options)


def check_cpu(machine: Machine) -> Iterator[Check]:
    """What matters where the CPU computes."""
    yield check_bfloat16(machine)
    yield check_huge_pages(machine)


def check_cores(machine: Machine, options: Options) -> Check:
    """Threads, against the cores that this process may use."""
    cores, quota = machine.cores, _quota(machine)
    usable = cores if quota is None else min(cores, quota)
    limited = (
        "" if quota is None or quota >= cores else f", of which a control group grants the time of {quota:g}"
    )
    found = f"This process may use {cores} cores{limited}."
    wanted = options.threads * (1 if options.device == "cpu" else options.num_shard or 1)
    if wanted > usable:
        return warn(
            "cores", f"{found} --threads asks for {wanted}.", f"Start with --threads {max(int(usable), 1)}."
        )
    if usable < 2:
        return warn("cores", found, "Give the server a second core: one is for HTTP and scheduling.")
    return ok("cores", found)


def _quota(machine: Machine) -> float | None:
    """CPUs' worth of time of the outermost control group that this container sees."""
    given, _, period = machine.text("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(given) / int(period) if given.isdigit() and period.isdigit() else None


def check_memory(machine: Machine) -> Check:
    """What is left of the machine's memory, or of a container's."""
    total, free = machine.memory
    limit, used = (machine.text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    cached = re.search(r"^inactive_file (\d+)$", machine.text("/sys/fs/cgroup/memory.stat"), re.MULTILINE)
    inside = ""
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        left = int(limit) - int(used) + (int(cached[1]) if cached else 0)
        total, free, inside = int(limit), min(free, left), " that the container may have"
    found = f"{free / GIB:.1f} GiB of the {total / GIB:.1f} GiB{inside} are free."
    if free < LEAST_MEMORY:
        return warn("memory", found, "End what takes it, or give the container more with --memory.")
    return ok("memory", found)


def check_shared_memory(machine: Machine, options: Options) -> Check:
    """Ranks, and the libraries of collectives, talk through it."""
    ranks = options.num_shard or 1
    try:
        size, _ = machine.disk(machine.path("/dev/shm"))
    except OSError:
        return warn("shared memory", "There is no /dev/shm.", "Mount a tmpfs there: several ranks need it.")
    found = f"/dev/shm has {size / MIB:,.0f} MiB."
    if size >= LEAST_SHM:
        return ok("shared memory", found)
    advice = (
        "Start the container with --ipc=host or --shm-size=1g; in Kubernetes mount memory there (emptyDir)."
    )
    return fail("shared memory", found, advice) if ranks > 1 else warn("shared memory", found, advice)


def check_files(options: Options, limit: int) -> Check:
    """Descriptors: every connection is one."""
    wanted = FILES + MOST_REQUESTS_FILES * options.max_concurrent_requests
    found = f"A process may have {limit:,} files open."
    if limit != resource.RLIM_INFINITY and limit < wanted:
        advice = (
            f"Raise it with `ulimit -n {wanted}`, or lower --max-concurrent-requests "
            f"{options.max_concurrent_requests}."
        )
        return warn("open files", found, advice)
    return ok("open files", found)


def check_port(options: Options) -> Check:
    """Whether the server could listen."""
    name, address = "port", (options.address, options.port)
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                found = f"Somebody listens at port {options.port} already."
                return fail(
                    name,
                    found,
                    f"End that process (`ss -ltnp 'sport = :{options.port}'`), or take another --port.",
                )
            found = f"It is not possible to listen at {options.address}:{options.port}: {error.strerror}."
            advice = "Take a --port of 1024 or above, and a --hostname of this machine, such as 0.0.0.0."
            return fail(name, found, advice)
    return ok(name, f"Port {options.port} is free.")


def check_bfloat16(machine: Machine) -> Check:
    """Instructions for bfloat16."""
    flags = set(re.findall(r"\w+", machine.text("/proc/cpuinfo")))
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")):
        if flag in flags:
            return ok("bfloat16", f"The CPU multiplies bfloat16 with {name}.")
    found = "The CPU has no instructions for bfloat16."
    return warn(
        "bfloat16", found, "Take --dtype float32 where there is memory enough: nothing is rounded then."
    )


def check_huge_pages(machine: Machine) -> Check:
    """Weights are read faster from huge pages, which ranks ask for."""
    modes = machine.text("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes:
        return ok("huge pages", "The system has no transparent huge pages.")
    mode = modes.partition("[")[2].partition("]")[0]
    found = f"Transparent huge pages are set to {mode}."
    if mode == "never":
        advice = (
            "Write madvise into /sys/kernel/mm/transparent_hugepage/enabled: weights are read faster then."
        )
        return warn("huge pages", found, advice)
    return ok("huge pages", found)
