"""The tables of adapters: adapters/README.md tells what they offer and how many lines they take, and
docs/architectures.md which models they run and what is compared with transformers.

`python -m tests.test_adapters_page` writes them.
"""

import importlib.util
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from tgi.plugins import load_plugins

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "adapters"
SUFFIX = " for the tgi server"


def lines_of_code(folder: Path) -> int:
    """To the nearest ten."""
    return round(sum(len(file.read_text("utf-8").splitlines()) for file in folder.glob("tgi_*/*.py")), -1)


def offered() -> dict[str, list[str]]:
    """Architectures by adapter."""
    return {
        plugin.distribution: [f"`{item.name}`" for item in plugin.architectures]
        for plugin in load_plugins().installed
        if plugin.architectures and (ADAPTERS / plugin.distribution).is_dir()
    }


def sizes() -> list[str]:
    rows = ["| adapter | architectures | lines of Python, about |", "| --- | --- | --- |"]
    for name, architectures in sorted(offered().items()):
        lines = lines_of_code(ADAPTERS / name)
        rows.append(f"| [`{name}`]({name}) | {', '.join(architectures)} | {lines} |")
    return rows


def families() -> list[str]:
    """The random checkpoints are those of `CONFIGS` in an adapter's test; older ones have tables below."""
    rows = ["| models | architectures | random checkpoints that are compared |", "| --- | --- | --- |"]
    for name, architectures in sorted(offered().items()):
        folder = ADAPTERS / name
        models = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["description"]
        (test,) = folder.glob(f"tests/test_{name.removeprefix('tgi-').replace('-', '_')}.py")
        configs = getattr(imported(test), "CONFIGS", None)
        if models.endswith(SUFFIX):
            compared = "; ".join(configs) if configs else f"see [the test](../{test.relative_to(ROOT)})"
            models = models.removesuffix(SUFFIX).rstrip(",")
            rows.append(f"| {models} | {', '.join(architectures)} | {compared} |")
    return rows


def imported(path: Path) -> ModuleType:
    """Import a file with tests that use no others."""
    if "CONFIGS = " not in path.read_text("utf-8"):
        return ModuleType("without")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES: dict[Path, Callable[[], list[str]]] = {
    ADAPTERS / "README.md": sizes,
    ROOT / "docs" / "architectures.md": families,
}
"""The first table of each page."""


def first_table(text: str) -> str:
    found = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert found is not None
    return found[0]


def test_the_tables_are_what_is_there() -> None:
    for page, table in TABLES.items():
        assert first_table(page.read_text("utf-8")).splitlines() == table(), page


if __name__ == "__main__":
    for page, table in TABLES.items():
        text = page.read_text("utf-8")
        page.write_text(text.replace(first_table(text), "\n".join(table()) + "\n"), "utf-8")
