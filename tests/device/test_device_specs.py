"""Descriptions of devices: cards, variables for ranks, and what importing them costs."""

import subprocess
import sys
from pathlib import Path

import pytest
from tgi_simulated_gaudi.plugin import tgi_devices as simulated_devices

import tgi.device
from tgi.config import Options
from tgi.device import cpu, cuda, hpu, tgi_devices
from tgi.device.costs import LLAMA_8B
from tgi.plugins.device import REFERENCE, DeviceSpec
from tgi.plugins.machine import Machine


def pci(root: Path, *ids: tuple[str, str]) -> Machine:
    for number, (vendor, device) in enumerate(ids):
        folder = root / f"sys/bus/pci/devices/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")
    return Machine(root=root, environ={})


def test_every_folder_is_offered() -> None:
    folders = {path.parent.name for path in Path(tgi.device.__file__).parent.glob("*/__init__.py")}
    assert {spec.name for spec in tgi_devices()} == folders >= {"cpu", "cuda", "hpu"}


def test_the_server_reads_devices_without_torch() -> None:
    code = (
        "import sys; from tgi.device import tgi_devices; from tgi.plugins.machine import Machine\n"
        "for spec in tgi_devices():\n"
        "    spec.card(Machine()); spec.open_doctor()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("ids", "card"),
    [
        ([("0x8086", "0x1060"), ("0x1da3", "0x1020")], "gaudi2"),
        ([("0x1da3", "0x1060"), ("0x1da3", "0x1060")], "gaudi3"),
        ([], "gaudi2"),
    ],
)
def test_generation_by_pci_ids(tmp_path: Path, ids: list[tuple[str, str]], card: str) -> None:
    machine = pci(tmp_path, *ids)
    assert hpu.SPEC.card(machine) == (card, hpu.SPEC.cards[card])
    assert len(hpu.installed_cards(machine)) == sum(vendor == "0x1da3" for vendor, _ in ids)


def test_the_simulated_generation_by_its_variable() -> None:
    [spec] = simulated_devices()
    assert spec.card(Machine(environ={"TGI_SIMULATED_GAUDI": "gaudi3"}))[0] == "gaudi3"
    assert spec.card(Machine(environ={}))[0] == "gaudi2"
    assert spec.installed_cards(Machine(environ={})) == []


def test_gpus_by_the_drivers_files(tmp_path: Path) -> None:
    assert cuda.SPEC.card(Machine(root=tmp_path))[0] == "h100"
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 42\n")
    assert cuda.SPEC.card(Machine(root=tmp_path))[0] == "h200"


def test_a_device_that_names_no_cards_is_taken_for_the_reference() -> None:
    spec = DeviceSpec(
        name="x", implementation="x:X", block_size=16, batch_size=8, prefill_tokens=128, compiles=True
    )
    assert spec.card(Machine()) == ("x", REFERENCE)
    assert spec.step_costs(LLAMA_8B, REFERENCE, 16).block_size == 16
    assert list(spec.open_doctor().checks(Machine(), Options())) == []


def test_recipes_are_kept_by_the_bridges_variable() -> None:
    assert hpu.SPEC.compile_variables(Path("/cache")) == {
        "PT_HPU_RECIPE_CACHE_CONFIG": "/cache,false,8192,false"
    }
    assert (cpu.SPEC.compile_cache, cuda.SPEC.compile_cache) == ("", "")


def test_versions_of_what_is_installed() -> None:
    assert Machine().versions(["tgi-server", "python", "no-such-distribution"]).keys() == {
        "tgi-server",
        "python",
    }
