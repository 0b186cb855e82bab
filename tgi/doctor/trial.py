"""Runs the probes in processes of their own, as ranks, and reads what they say."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from tgi.executor import rank_environment
from tgi.plugins import DeviceSpec
from tgi.plugins.check import Check, fail

PATIENCE = 180.0
"""Seconds for all probes: the first graph of a cold card takes some."""


def try_device(spec: DeviceSpec, threads: int, ranks: int, patience: float = PATIENCE) -> list[Check]:
    """What the probes come to, by rank 0, and whatever ends a rank."""
    with tempfile.TemporaryDirectory(prefix="tgi-") as place:
        folder = Path(place)
        started = [_start(spec.name, threads, rank, ranks, folder, spec.environment) for rank in range(ranks)]
        try:
            late = _wait(started, patience)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()
        checks, begun = _read(folder / "0.out")
        return [*checks, *_endings(started, late, begun, folder, patience, spec.open_doctor().crash)]


def _start(
    name: str, threads: int, rank: int, ranks: int, folder: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-m",
        "tgi.doctor.probe",
        name,
        str(threads),
        str(rank),
        str(ranks),
        str(folder / "ranks"),
    ]
    with (folder / f"{rank}.out").open("wb") as out, (folder / f"{rank}.err").open("wb") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env=rank_environment(rank, ranks, environment),
        )


def _wait(started: Sequence["subprocess.Popen[bytes]"], patience: float) -> bool:
    """Until all have ended, or one badly; whether it took too long."""
    waiting = {os.pidfd_open(process.pid): process for process in started}
    end = time.monotonic() + patience
    try:
        while waiting:
            ready = wait(list(waiting), max(end - time.monotonic(), 0))
            if not ready:
                return True
            for descriptor in ready:
                assert isinstance(descriptor, int)
                process = waiting.pop(descriptor)
                os.close(descriptor)
                if process.wait():
                    return False
    finally:
        for descriptor in waiting:
            os.close(descriptor)
    return False


def _read(path: Path) -> tuple[list[Check], str]:
    """What has come of the probes, and the one that had begun at last."""
    checks, begun = [], ""
    for line in path.read_text(errors="replace").splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # a library's
        if isinstance(said, str):
            begun = said
        else:
            checks.append(Check(**said))
            begun = ""
    return checks, begun


def _endings(
    started: Sequence["subprocess.Popen[bytes]"],
    late: bool,
    begun: str,
    folder: Path,
    patience: float,
    advice: str,
) -> Iterator[Check]:
    """Of ranks that did not end as they should."""
    if late:
        found = f"It has not ended within {patience:g} s."
        yield fail(begun or "device", found, advice)
        return
    for rank, process in enumerate(started):
        code = process.returncode
        if code in (0, -signal.SIGKILL) and not (rank == 0 and begun):
            continue
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        said = (folder / f"{rank}.err").read_text(errors="replace").strip().splitlines()
        found = f"Rank {rank} ended {how}{': ' + said[-1][:200] if said else ''}."
        yield fail(begun or "device" if rank == 0 else f"rank {rank}", found, advice)
        return
