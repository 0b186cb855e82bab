"""adapters/README.md lists the adapters of this repository, what they offer, and how many lines they take.

`python -m tests.test_adapters_page` writes its table.
"""

import re
from pathlib import Path

from tgi.plugins import load_plugins

ADAPTERS = Path(__file__).parents[1] / "adapters"
PAGE = ADAPTERS / "README.md"


def lines_of_code(folder: Path) -> int:
    """To the nearest ten."""
    return round(sum(len(file.read_text("utf-8").splitlines()) for file in folder.glob("tgi_*/*.py")), -1)


def table() -> list[str]:
    offered = {
        plugin.distribution: [f"`{item.name}`" for item in plugin.architectures]
        for plugin in load_plugins().installed
    }
    rows = ["| adapter | architectures | lines of Python, about |", "| --- | --- | --- |"]
    for folder in sorted(path for path in ADAPTERS.glob("tgi-*") if offered[path.name]):
        lines = lines_of_code(folder)
        rows.append(f"| [`{folder.name}`]({folder.name}) | {', '.join(offered[folder.name])} | {lines} |")
    return rows


def test_the_table_is_what_is_there() -> None:
    assert [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")] == table()


if __name__ == "__main__":
    rows = re.sub(r"(?:^\|.*\n)+", "\n".join(table()) + "\n", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    PAGE.write_text(rows, "utf-8")
