"""adapters/README.md lists the adapters of this repository, what they offer, and how many lines they take."""

from pathlib import Path

from tgi.plugins import load_plugins

ADAPTERS = Path(__file__).parents[1] / "adapters"
PAGE = (ADAPTERS / "README.md").read_text("utf-8")


def lines_of_code(folder: Path) -> int:
    """To the nearest ten."""
    return round(sum(len(file.read_text("utf-8").splitlines()) for file in folder.glob("tgi_*/*.py")), -1)


def test_the_table_is_what_is_there() -> None:
    offered = {
        plugin.distribution: [f"`{item.name}`" for item in plugin.architectures]
        for plugin in load_plugins().installed
    }
    rows = ["| adapter | architectures | lines of Python, about |", "| --- | --- | --- |"]
    for folder in sorted(path for path in ADAPTERS.glob("tgi-*") if offered[path.name]):
        lines = lines_of_code(folder)
        rows.append(f"| [`{folder.name}`]({folder.name}) | {', '.join(offered[folder.name])} | {lines} |")

    assert [line for line in PAGE.splitlines() if line.startswith("|")] == rows
