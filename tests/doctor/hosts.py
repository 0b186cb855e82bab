"""Made-up hosts: a folder with the files that the doctor reads, and the output of hl-smi."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tgi.plugins.machine import GIB, Machine

SOFTWARE = {"python": "3.12.3", "torch": "2.11.0+hpu", "habana-torch-plugin": "1.24.1.7"}
PAGE = """\
+-----------------------------------------------------------------------------+
| HL-SMI Version:                              hl-1.24.1-fw-67.1.1.0          |
| Driver Version:                                     1.24.1-3bf9e81          |
|-------------------------------+----------------------+----------------------+
| AIP  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |
| Fan  Temp  Perf  Pwr:Usage/Cap|         Memory-Usage | AIP-Util  Compute M. |
|===============================+======================+======================|
|   0  HL-225              N/A  | 0000:19:00.0     N/A |                   0  |
| N/A   29C   N/A    87W / 600W |    768MiB / 98304MiB |     0%           N/A |
|-------------------------------+----------------------+----------------------+
| Compute Processes:                                               AIP Memory |
|  AIP       PID   Type   Process name                             Usage      |
|=============================================================================|
"""
NOBODY = "|   0        N/A   N/A    N/A                                      N/A        |\n"
SOMEBODY = "|   1       4711     C   python3                                 91240MiB     |\n"


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def plain_host(root: Path, files: Mapping[str, str] = {}, **other: Any) -> Machine:
    """Return a host without cards, in which all is well but for `files` and `other`."""
    write(
        root,
        {
            "dev/shm/nothing": "",
            "proc/cpuinfo": "flags : fpu amx_bf16 avx512_bf16\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            **files,
        },
    )
    fields: dict[str, Any] = {
        "root": root,
        "environ": {},
        "version": lambda name: SOFTWARE.get(name, ""),
        "run": lambda _: None,
        "may_use": lambda _: True,
        "disk": lambda path: (path.stat() and 64 * GIB, 32 * GIB),
        "cores": 8,
        "memory": (64 * GIB, 32 * GIB),
    }
    return Machine(**(fields | other))


def gaudi_host(
    root: Path,
    files: Mapping[str, str] = {},
    *,
    cards: int = 8,
    driver: str = "1.24.1-3bf9e81",
    firmware: Sequence[str] = ("1.24.1-fw-67.0.0",) * 8,
    used: int = 768,
    page: str = PAGE + NOBODY,
    **other: Any,
) -> Machine:
    """Return a host with Gaudi2 cards, four at each of two sockets, in which all is well but for the
    arguments."""
    present = {
        "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-3,8-11\n",
        "sys/module/habanalabs/version": driver,
    }
    for number in range(cards):
        bus = f"sys/bus/pci/devices/0000:{number:02d}:00.0"
        node = str(number // 4) if cards > 4 else "0"
        present |= {f"{bus}/vendor": "0x1da3\n", f"{bus}/device": "0x1020\n", f"{bus}/numa_node": f"{node}\n"}
        present |= {f"dev/accel/accel{number}": "", f"dev/accel/accel_controlD{number}": ""}
        present[f"sys/class/accel/accel{number}/device/status"] = "Operational\n"
    for node, cores in enumerate(("0-3", "8-11")):
        present[f"sys/devices/system/node/node{node}/cpulist"] = f"{cores}\n"
    table = "".join(
        f"{n}, HL-225, 0000:{n:02d}:00.0, {driver}, {n}, 98304 MiB, {used} MiB\n" for n in range(cards)
    )
    listed = "".join(
        f"\tFirmware [SPI] Version      : Preboot version hl-gaudi2-{version}-sec-9 (Jan 16 2026)\n"
        for version in firmware[:cards]
    )

    def run(command: Sequence[str]) -> str | None:
        return {"-Q": table, "-L": listed}.get(command[1], "") if len(command) > 1 else page

    return plain_host(root, {**present, **files}, **({"run": run} | other))
