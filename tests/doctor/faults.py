"""Faults of a machine and its cards, each planted in an otherwise healthy host, or in a simulated Gaudi."""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from tgi_simulated_gaudi.device import SimulatedHpu, open_card

from tgi.config import Options
from tgi.device.base import Device
from tgi.device.cpu import SPEC as CPU
from tgi.device.cpu import cpu_checks
from tgi.device.cuda import nvidia_checks as nvidia
from tgi.device.hpu import SPEC as GAUDI
from tgi.device.hpu import gaudi_checks as gaudi
from tgi.device.hpu import gaudi_probes, pci_folders
from tgi.device.hpu.gaudi_versions import PLUGIN, check_driver, check_firmware, check_software
from tgi.device.hpu.hl_smi import read_hl_smi
from tgi.doctor import host, probe
from tgi.doctor.trial import try_device
from tgi.plugins.check import Check
from tgi.plugins.machine import GIB, MIB, Machine
from tgi.weights import Shard

from .hosts import PAGE, SOFTWARE, SOMEBODY, gaudi_host, plain_host

Fault = Callable[[Path], Check]
DOCTOR = GAUDI.open_doctor()
FAULTS: dict[str, Fault] = {}
"""Functions that plant a fault and make its check, by the fault's name in docs/doctor.md."""


def fault(what: str) -> Callable[[Fault], Fault]:
    def put(plant: Fault) -> Fault:
        FAULTS[what] = plant
        return plant

    return put


# ---- any host ------------------------------------------------------------------------------------------

FAULTS |= {
    "--threads 16, and 8 cores": lambda p: host.check_cores(plain_host(p), Options(threads=16)),
    "a control group that grants half a core": lambda p: host.check_cores(
        plain_host(p, {"sys/fs/cgroup/cpu.max": "50000 100000"}), Options()
    ),
    "little memory": lambda p: host.check_memory(plain_host(p, memory=(16 * GIB, GIB))),
    "a container that has used up its memory": lambda p: host.check_memory(
        plain_host(
            p,
            {
                "sys/fs/cgroup/memory.max": str(8 * GIB),
                "sys/fs/cgroup/memory.current": str(8 * GIB - 300 * MIB),
                "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {200 * MIB}\n",
            },
        )
    ),
    "a container with Docker's shared memory": lambda p: host.check_shared_memory(
        plain_host(p, disk=lambda _: (64 * MIB, 64 * MIB)), Options()
    ),
    "the same, and two ranks": lambda p: host.check_shared_memory(
        plain_host(p, disk=lambda _: (64 * MIB, 64 * MIB)), Options(num_shard=2)
    ),
    "`ulimit -n 256`": lambda _: host.check_files(Options(), 256),
    "a CPU without bfloat16": lambda p: cpu_checks.check_bfloat16(
        plain_host(p, {"proc/cpuinfo": "flags : avx2"})
    ),
    "no huge pages": lambda p: cpu_checks.check_huge_pages(
        plain_host(p, {"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"})
    ),
}


@fault("no /dev/shm")
def no_shared_memory(place: Path) -> Check:
    machine = plain_host(place)
    shutil.rmtree(place / "dev/shm")
    return host.check_shared_memory(machine, Options())


@fault("a port that is taken")
def taken_port(_: Path) -> Check:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        found = host.check_port(Options(port=port))
    return Check(
        *(text.replace(str(port), "3000") for text in (found.name, found.state, found.found, found.advice))
    )  # type: ignore[arg-type]


@fault("an address of another machine")
def foreign_address(_: Path) -> Check:
    return host.check_port(Options(hostname="192.0.2.1"))


# ---- a host with Gaudi ---------------------------------------------------------------------------------


def software(**versions: str) -> Check:
    return check_software({**SOFTWARE, **{name.replace("_", "-"): text for name, text in versions.items()}})


FAULTS |= {
    "no bridge": lambda _: check_software({"python": "3.12.3", "torch": "2.13.0"}),
    "the bridge with another torch": lambda _: software(torch="2.13.0+cpu"),
    "the bridge with another Python": lambda _: software(
        python="3.11.7", habana_torch_plugin="1.20.1.97", torch="2.6.0+hpu"
    ),
    "a release that nothing is known of": lambda _: software(habana_torch_plugin="1.31.0.5"),
    "no card": lambda p: gaudi.check_cards(machine := plain_host(p), pci_folders(machine)),
    "a driver older than the image": lambda p: driver(gaudi_host(p, driver="1.22.0-ee698fb")),
    "a driver newer than the image": lambda p: driver(gaudi_host(p, driver="1.25.0-12ab34c")),
    "no hl-smi": lambda p: driver(gaudi_host(p, run=lambda _: None)),
    "cards with older firmware": lambda p: firmware(gaudi_host(p, firmware=["1.20.0-fw-58.0.0"] * 8)),
    "cards with different firmware": lambda p: firmware(
        gaudi_host(p, firmware=["1.20.0-fw-58.0.0"] + ["1.24.1-fw-67.0.0"] * 7)
    ),
    "files of cards that are root's": lambda p: gaudi.check_access(
        gaudi_host(p, cards=2, may_use=lambda path: path.name != "accel1")
    ),
    "a card that does not work": lambda p: gaudi.check_health(
        gaudi_host(p, {"sys/class/accel/accel1/device/status": "Malfunction\n"}, cards=2)
    ),
    "a process of another container at a card": lambda p: holders(gaudi_host(p, page=PAGE + SOMEBODY), 8),
    "the same, and one rank": lambda p: holders(gaudi_host(p, page=PAGE + SOMEBODY), 1),
    "memory in use by what cannot be seen": lambda p: holders(gaudi_host(p, cards=2, used=91240), 1),
    "HABANA_VISIBLE_MODULES with a card that there is not": lambda p: visible(
        gaudi_host(p, cards=2, environ={"HABANA_VISIBLE_MODULES": "0,5"}), 2
    ),
    "more ranks than cards": lambda p: visible(gaudi_host(p, cards=2), 4),
    "a server away from its cards": lambda p: numa(gaudi_host(p, cards=2)),
    "no recipe cache": lambda p: gaudi.check_recipes(gaudi_host(p), Options()),
    "a recipe cache that is root's": lambda p: gaudi.check_recipes(
        gaudi_host(p, may_use=lambda _: False), Options(recipe_cache=Path("/recipes"))
    ),
    "a recipe cache on a full disk": lambda p: gaudi.check_recipes(
        gaudi_host(p, disk=lambda _: (64 * GIB, GIB)), Options(recipe_cache=Path("/recipes"))
    ),
}


def driver(machine: Machine) -> Check:
    return check_driver(read_hl_smi(machine).driver, machine.versions((PLUGIN,)))


def firmware(machine: Machine) -> Check:
    smi = read_hl_smi(machine)
    return check_firmware(smi.firmware, smi.driver)


def holders(machine: Machine, ranks: int) -> Check:
    return gaudi.check_holders(machine, read_hl_smi(machine), ranks)


def visible(machine: Machine, ranks: int) -> Check:
    return gaudi.check_visible(
        machine.environ, read_hl_smi(machine), len(machine.files(GAUDI.card_files)), ranks
    )


def numa(machine: Machine) -> Check:
    return gaudi.check_numa(machine, pci_folders(machine))


@fault("a driver that is not loaded")
def no_driver(place: Path) -> Check:
    machine = gaudi_host(place)
    shutil.rmtree(place / "dev/accel")
    shutil.rmtree(place / "sys/module")
    return gaudi.check_cards(machine, pci_folders(machine))


@fault("a container that did not get the cards")
def no_cards_inside(place: Path) -> Check:
    machine = gaudi_host(place)
    shutil.rmtree(place / "dev/accel")
    return gaudi.check_cards(machine, pci_folders(machine))


@fault("a process here at a card")
def own_process(place: Path) -> Check:
    machine = gaudi_host(place, {"proc/815/comm": "text-generation\n"}, cards=1)
    (place / "proc/815/fd").mkdir()
    (place / "proc/815/fd/7").symlink_to("/dev/accel/accel0")
    return holders(machine, 1)


# ---- a host with NVIDIA GPUs -------------------------------------------------------------------------------

GPUS = {"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": "", "proc/driver/nvidia/version": "NVRM 570"}
FAULTS |= {
    "no GPU": lambda p: nvidia.check_gpus(plain_host(p), 1),
    "a container that did not get the GPUs": lambda p: nvidia.check_gpus(
        plain_host(p, {"proc/driver/nvidia/version": "NVRM 570"}), 1
    ),
    "more ranks than GPUs": lambda p: nvidia.check_gpus(
        plain_host(p, GPUS, environ={"CUDA_VISIBLE_DEVICES": "1"}), 2
    ),
    "files of GPUs that are root's": lambda p: nvidia.check_gpu_access(
        plain_host(p, GPUS, may_use=lambda path: path.name != "nvidiactl")
    ),
    "a GPU that others use": lambda p: nvidia.check_gpu_memory(
        plain_host(p, GPUS, run=lambda _: "0, 3, 570.86.15\n1, 60211, 570.86.15\n")
    ),
    "no nvidia-smi": lambda p: nvidia.check_gpu_memory(plain_host(p, GPUS)),
}


# ---- the device itself ---------------------------------------------------------------------------------


@contextlib.contextmanager
def simulated(card: str = "gaudi2-lazy", **planted: Any) -> Iterator[SimulatedHpu]:
    """Open a simulated card with some attributes replaced."""
    with open_card(card) as device, torch.inference_mode():
        assert isinstance(device, SimulatedHpu)
        for name, value in planted.items():
            setattr(device, name, value)
        yield device


def probed(name: str, **planted: Any) -> Check:
    with simulated(**planted) as device:
        return asked(name, device)


def asked(name: str, device: SimulatedHpu) -> Check:
    return probe.attempt(name, probe.probes_of(device, DOCTOR)[name], DOCTOR)


def refused(name: str, kernel: str, card: str = "gaudi2-lazy") -> Check:
    with simulated(card) as device:
        device.card.profile = attrs.evolve(device.card.profile, refused=frozenset({kernel}))
        return asked(name, device)


def wrong_kernel(
    name: str, kernel: str, change: Callable[[torch.Tensor], torch.Tensor], card: str = "gaudi2-lazy"
) -> Check:
    with simulated(card) as device:
        right = getattr(device.bridge, kernel)
        device.bridge = attrs.evolve(device.bridge, **{kernel: lambda *args: change(right(*args))})
        return asked(name, device)


def without(name: str, kernel: str) -> Check:
    with simulated() as device:
        device.bridge = attrs.evolve(device.bridge, **{kernel: None})
        return asked(name, device)


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


FAULTS |= {
    "a card that another process has": lambda _: probe.failure(
        "device", RuntimeError("synStatus=8 [Device not found] Device acquire failed."), DOCTOR
    ),
    "matrix products that are wrong": lambda _: probed(
        "numbers", linear=lambda x, weight: x @ weight.roll(1, 0).t()
    ),
    "graphs that do not take new inputs": lambda _: probed("graph", graph=stale),
    "graphs whose capture fails": lambda _: probed(
        "graph", graph=raising(RuntimeError("cpu fallback is not supported during hpu graph capturing"))
    ),
    "results of graphs that turn into others": lambda _: probed("static outputs", graph=vanishing),
    "fp8 of another generation": lambda _: probed("fp8", fp8_limit=448.0),
    "graphs that read parts of an old input": lambda _: probed("parts of inputs", graph=stale),
    "products of integers that lose their low bits": lambda _: probed("random bits", graph=halved),
    "a block adjustment that the card refuses": lambda _: refused(
        "block adjustment", "block_softmax_adjustment", "gaudi3-lazy"
    ),
    "a block adjustment without numbers for padding": lambda _: wrong_kernel(
        "block adjustment",
        "block_adjustment",
        lambda y: y / (torch.arange(4, dtype=torch.int32, device=y.device) < 3).view(4, 1, 1, 1),
        "gaudi3-lazy",
    ),
    "batches of matrices in fp8 that the card refuses": lambda _: refused("fp8 batches", "fp8_gemm_v2"),
    "batches of matrices in fp8 that are multiplied wrongly": lambda _: wrong_kernel(
        "fp8 batches", "fp8_gemm", lambda y: y.flip(0)
    ),
    "software that cannot multiply in fp8": lambda _: without("fp8 batches", "fp8_gemm"),
    "a cache in fp8 that the card refuses": lambda _: refused("fp8 cache", "cast_to_fp8_v2"),
    "a cache in fp8 from which other values are read": lambda _: wrong_kernel(
        "fp8 cache", "fp8_gemm", lambda y: y * 2
    ),
    "ranks that do not add up": lambda p: ranks_add_up(p, all_reduce=lambda x, _: x),
    "ranks without links": lambda p: ranks_add_up(
        p, connect=raising(RuntimeError("HCCL: invalid server type"))
    ),
}


@fault("a card whose memory others have")
def taken_memory(_: Path) -> Check:
    with simulated() as device:
        device.card.memory.take(90 * GIB)
        return probe.probe_memory(device, DOCTOR)


@fault("a card without memory for a tensor")
def no_memory(_: Path) -> Check:
    with simulated() as device:
        device.card.memory.take(device.card.memory.limit - 16)
        return probe.attempt("graph", lambda: probe.probe_graph(device, DOCTOR), DOCTOR)


@fault("--device hpu without Intel's software")
def no_software(place: Path) -> Check:
    messages: list[Any] = []
    os.environ.setdefault("PT_HPU_LAZY_MODE", "0")
    probe.run("hpu", 1, Shard(), place / "ranks", messages.append)
    assert messages[0] == "device"
    assert isinstance(messages[1], Check)
    return messages[1]


class Changed(torch.overrides.TorchFunctionMode):
    """Mode in which a function of torch returns something else."""

    def __init__(self, name: str, result: torch.Tensor) -> None:
        super().__init__()
        self.name, self.result = name, result

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.result if function.__name__ == self.name else function(*args, **(kwargs or {}))


@fault("int64 that is neither kept nor cut")
def odd_int64(_: Path) -> Check:
    with Changed("cpu", torch.tensor([2**31 - 1])):
        return gaudi_probes.probe_int64(Device(1))


@fault("one_hot(-1) that is something else")
def odd_one_hot(_: Path) -> Check:
    with Changed("one_hot", torch.tensor([[0, 1, 0], [0, 0, 1]])):
        return gaudi_probes.probe_one_hot(Device(1))


def stale(program: torch.nn.Module) -> Callable[[torch.Tensor], tuple[torch.Tensor]]:
    kept: list[torch.Tensor] = []

    def run(packed: torch.Tensor) -> tuple[torch.Tensor]:
        kept.append(packed)
        return program(kept[0])  # type: ignore[no-any-return]

    return run


def halved(program: torch.nn.Module) -> Callable[[torch.Tensor], tuple[torch.Tensor]]:
    return lambda packed: (program(packed)[0] * 0.5,)


def vanishing(_: torch.nn.Module) -> Callable[[torch.Tensor], tuple[torch.Tensor]]:
    buffer = torch.zeros(4, dtype=torch.int32, device="hpu")

    def run(_packed: torch.Tensor) -> tuple[torch.Tensor]:
        buffer.add_(9)
        return (buffer,)

    return run


def ranks_add_up(place: Path, **planted: Any) -> Check:
    with simulated(**({"connect": lambda *_: None} | planted)) as device:
        return probe.attempt(
            "all-reduce", lambda: probe.probe_ranks(device, DOCTOR, Shard(0, 2), place / "ranks"), DOCTOR
        )


# ---- processes that do not come back -------------------------------------------------------------------


def tried(place: Path, code: str, ranks: int = 1, patience: float = 60.0) -> Check:
    """Return the result if the processes run `code` before anything else."""
    place.mkdir(exist_ok=True)
    prelude = "import os, signal, sys\nfrom tgi.protocol import frame\n"
    (place / "sitecustomize.py").write_text(f"{prelude}{code}\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place), *([before] if before else [])])
    try:
        [found] = try_device(attrs.evolve(CPU, environment={}), 1, ranks, patience)
    finally:
        del os.environ["PYTHONPATH"]
        os.environ |= {"PYTHONPATH": before} if before else {}
    return found


FAULTS |= {
    "a driver that ends the process": lambda p: tried(
        p,
        "os.write(0, frame(b'\"graph\"')); print('Bad address', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)",
    ),
    "one of two ranks that ends": lambda p: tried(
        p, 'signal.pause() if os.environ["RANK"] == "0" else os.kill(os.getpid(), signal.SIGABRT)', 2
    ),
    "a card that does not answer": lambda p: tried(
        p, "os.write(0, frame(b'\"graph\"')); signal.pause()", patience=2.0
    ),
}
