"""What the distributions of this repository say of themselves and of each other."""

import datetime
import importlib.util
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
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


def test_the_page_about_installing_explains_each_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \| ", page, re.MULTILINE)) - {"tgi-server", *PARTS} == set(
        SERVER["optional-dependencies"]
    )


def test_installing_the_server_brings_every_family_and_the_kernels() -> None:
    assert ours(SERVER).keys() == PARTS.keys() - {"tgi-simulated-gaudi", "tgi-transformers"}


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


def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("version", ROOT / "release" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_release_writes_its_version_everywhere(tmp_path: Path) -> None:
    parts = (*ROOT.glob("adapters/*/pyproject.toml"), *ROOT.glob("kernels/*/pyproject.toml"))
    tables = [path.relative_to(ROOT) for path in (ROOT / "pyproject.toml", *parts)]
    chart, package = Path("deploy/helm/tgi/Chart.yaml"), Path("tgi/__init__.py")
    for file in (*tables, chart, package):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    release().write_version(tmp_path, "7.4.1")

    projects = [tomllib.loads((tmp_path / file).read_text())["project"] for file in tables]
    assert {project["version"] for project in projects if "version" in project} == {"7.4.1"}
    assert {str(one.specifier) for project in projects for one in ours(project).values()} == {"<7.5,>=7.4"}
    assert '\n__version__ = "7.4.1"\n' in (tmp_path / package).read_text()
    charted = yaml.safe_load((tmp_path / chart).read_text())
    assert (charted["version"], charted["appVersion"]) == ("7.4.1", "7.4.1")


def test_a_release_takes_what_is_unreleased(tmp_path: Path) -> None:
    log = tmp_path / "CHANGELOG.md"
    log.write_text("# Changelog\n\n## Unreleased\n\n* Two.\n\n## 0.1.0, 1 May 2026\n\n* One.\n")
    assert release().write_section(log, "0.2.0", datetime.date(2026, 6, 9)) == "* Two."
    new = (
        "# Changelog\n\n## Unreleased\n\n## 0.2.0, 9 June 2026\n\n* Two.\n\n## 0.1.0, 1 May 2026\n\n* One.\n"
    )
    assert log.read_text() == new
    with pytest.raises(Exception, match="nothing below"):
        release().write_section(log, "0.3.0", datetime.date(2026, 6, 9))
    assert log.read_text() == new


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "0.2.0rc1", ""])
def test_a_release_refuses_what_is_no_version(version: str) -> None:
    with pytest.raises(Exception, match="no version"):
        release().write_version(ROOT, version)
