"""What the distributions of this repository say of themselves and of each other."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import tgi

ROOT = Path(__file__).parents[1]
SERVER: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PARTS: dict[str, dict[str, Any]] = {
    path.parent.name: tomllib.loads(path.read_text("utf-8"))["project"]
    for place in ("adapters", "kernels")
    for path in sorted((ROOT / place).glob("*/pyproject.toml"))
}


def ours(project: dict[str, Any]) -> dict[str, Requirement]:
    """Dependencies that are of this repository, by name."""
    found = (Requirement(line) for line in project["dependencies"])
    return {one.name: one for one in found if one.name in (*PARTS, "tgi-server")}


def test_installing_the_server_brings_every_family_and_the_kernels() -> None:
    assert ours(SERVER).keys() == PARTS.keys() - {"tgi-simulated-gaudi"}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_of_the_servers_version(name: str) -> None:
    assert (PARTS[name]["name"], PARTS[name]["version"]) == (name, tgi.__version__)


@pytest.mark.parametrize("name", sorted(PARTS.keys() - {"tgi-cpu-kernels", "tgi-simulated-gaudi"}))
def test_an_adapter_needs_the_server(name: str) -> None:
    assert "tgi-server" in ours(PARTS[name])


@pytest.mark.parametrize("project", [SERVER, *PARTS.values()], ids=lambda project: project["name"])
def test_parts_are_bound_to_one_minor_version(project: dict[str, Any]) -> None:
    """Before 1.0 a minor version may change what adapters rely on."""
    version = Version(tgi.__version__)
    bounds = f"<{version.major}.{version.minor + 1},>={version.major}.{version.minor}"
    assert {str(one.specifier) for one in ours(project).values()} <= {bounds}
