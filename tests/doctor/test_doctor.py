"""The doctor as a whole: a healthy host has no faults, and the output is as promised."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgi.config import Options
from tgi.device.cpu.cpu_checks import CpuDoctor
from tgi.device.cuda.nvidia_checks import NvidiaDoctor
from tgi.device.hpu.gaudi_checks import GaudiDoctor
from tgi.device.hpu.gaudi_releases import RELEASES
from tgi.device.hpu.gaudi_versions import check_driver, check_software
from tgi.device.hpu.hl_smi import parse_cards, parse_holders
from tgi.doctor.host import check_host
from tgi.doctor.show import examine
from tgi.plugins.machine import Machine

from .faults import GPUS
from .hosts import PAGE, SOMEBODY, gaudi_host, plain_host

DOCTOR = [sys.executable, "-m", "tgi", "doctor", "--port", "0"]


def test_a_healthy_host_with_gaudi(tmp_path: Path) -> None:
    machine, options = gaudi_host(tmp_path), Options(device="hpu", num_shard=8, port=0, recipe_cache=tmp_path)
    doctors = (GaudiDoctor(), CpuDoctor())
    checks = [*check_host(machine, options), *(c for d in doctors for c in d.checks(machine, options))]
    assert [check for check in checks if check.state != "ok"] == []
    found = {check.name: check.found for check in checks}
    assert found["cards"] == "8 Gaudi cards."
    assert found["driver"] == "Driver 1.24.1-3bf9e81."
    assert found["firmware"] == "Firmware 1.24.1-fw-67.0.0."
    assert found["NUMA"] == "The cards are at node 0, 1, and this process runs on node 0, 1."
    assert found["visible cards"] == "8 cards for 8 ranks."


def test_idle_cards_are_reported(tmp_path: Path) -> None:
    found = next(c for c in examine(Options(port=0, threads=1), gaudi_host(tmp_path)) if c.name == "cards")
    assert found.state == "warn"
    assert found.found == "8 cards for --device hpu are here, and --device is cpu."


def test_a_device_without_cards_is_not_opened(tmp_path: Path) -> None:
    names = [check.name for check in examine(Options(device="hpu", port=0), plain_host(tmp_path))]
    assert names[-2:] == ["software", "cards"]


def test_a_healthy_host_with_gpus(tmp_path: Path) -> None:
    machine = plain_host(tmp_path, GPUS, run=lambda _: "0, 3, 570.86.15\n1, 3, 570.86.15\n")
    found = list(NvidiaDoctor().checks(machine, Options(device="cuda", num_shard=2)))
    assert [check.state for check in found] == ["ok"] * 3
    assert found[-1].found == "No process uses the GPUs. Driver 570.86.15."


def test_sharding_without_cards_fails(tmp_path: Path) -> None:
    machine = plain_host(tmp_path, environ={"HABANA_VISIBLE_MODULES": "3"})
    [found] = examine(Options(device="hpu", sharded="true"), machine)
    assert (found.name, found.state) == ("ranks", "fail")


def test_an_unknown_device_fails(tmp_path: Path) -> None:
    last = list(examine(Options(device="tpu", port=0), plain_host(tmp_path)))[-1]
    assert last.state == "fail"
    assert last.advice.startswith("Choose --device from cpu, ")


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_needs_its_own_torch(release: str) -> None:
    torch, pythons = RELEASES[release]
    plugin = f"{release}.0.555" if release.count(".") == 1 else f"{release}.555"
    versions = {
        "habana-torch-plugin": plugin,
        "torch": f"{torch}+hpu_x",
        "python": f"{[*pythons, '3.10'][0]}.1",
    }
    assert check_software(versions).state == "ok"
    assert check_software({**versions, "torch": "2.3.0"}).state == "fail"
    assert check_software({**versions, "torch": f"{torch}a0+gitc1e5ed4"}).state == "ok"


def test_a_new_patch_of_a_known_release_is_accepted_with_a_warning() -> None:
    versions = {"habana-torch-plugin": "1.24.7.12", "torch": "2.11.0a0+git1", "python": "3.12.3"}
    check = check_software(versions)
    assert (check.state, "newer than the server" in check.advice) == ("warn", True)
    unknown = check_software({**versions, "habana-torch-plugin": "1.99.0.1"})
    assert (unknown.state, "not known" in unknown.advice) == ("warn", True)


@pytest.mark.parametrize(
    ("driver", "state"), [("1.24.1-3bf9e81", "ok"), ("1.23.0-0", "fail"), ("1.25.0", "fail"), ("", "warn")]
)
def test_a_driver_of_another_minor_version_is_a_failure(driver: str, state: str) -> None:
    assert check_driver(driver, {"habana-torch-plugin": "1.24.0.1007"}).state == state


def test_hl_smis_output_is_parsed() -> None:
    lines = (
        "0, HL-225, 0000:19:00.0, 1.24.1-3bf9e81, 3, 98304 MiB, 768 MiB",
        "# one",
        "1, HL-325L, b, d, N/A, x, y",
    )
    first, second = parse_cards("\n".join(lines))
    assert (first.index, first.name, first.module, first.total, first.used) == (0, "HL-225", 3, 98304, 768)
    assert (second.name, second.module, second.total) == ("HL-325L", None, None)
    assert parse_holders(PAGE + SOMEBODY) == [(1, 4711, "python3")]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [*DOCTOR, *arguments], capture_output=True, text=True, env=environment, timeout=100, check=False
    )


def test_this_cpu_as_json() -> None:
    done = run("--json", "--threads", "1")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert list(checks)[:5] == ["cores", "memory", "shared memory", "open files", "port"]
    assert checks["device"] == {"name": "device", "state": "ok", "found": "cpu can be opened.", "advice": ""}
    assert checks["numbers"]["state"] == "ok"
    assert done.returncode == any(check["state"] == "fail" for check in checks.values())


def test_the_report_has_the_checks_and_the_software(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--threads", "1", "--json", "--report", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [check["name"] for check in report["checks"]] == [c["name"] for c in json.loads(done.stdout)]
    assert report["versions"].keys() == {"python", "tgi-server", "torch", "transformers"}
    assert (report["device"], report["cards"]) == ("cpu", [])


def test_two_simulated_cards_as_a_page(tmp_path: Path) -> None:
    done = run("--device", "hpu-sim", "--num-shard", "2", "--threads", "1", "--recipe-cache", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    shown = {line[6:24].strip(): line[:4].strip() for line in lines if line[:4].strip()}
    probes = [
        "device",
        "memory of the card",
        "numbers",
        "graph",
        "static outputs",
        "int64",
        "one_hot(-1)",
        "fp8",
        "bit-casts",
        "views",
        "parts of inputs",
        "pinned memory",
        "event order",
        "stable sort",
        "index_reduce",
        "sort cost",
        "random bits",
        "block adjustment",
        "fp8 batches",
        "fp8 cache",
    ]
    assert list(shown)[-len(probes) - 1 :] == [*probes, "all-reduce"]
    assert {shown[name] for name in (*probes, "all-reduce", "recipe cache")} == {"ok"}


def test_this_machine_is_checked_without_torch() -> None:
    code = "import sys, tgi.doctor.show; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Machine().cores == len(os.sched_getaffinity(0))
