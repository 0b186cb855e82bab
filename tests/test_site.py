"""The site of the documentation: its pages, their links, and the messages that troubleshooting explains."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "adapters/**/README.md", "kernels/*/README.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
]


def pages(part: Any) -> Iterator[str]:
    """Yield the pages of the navigation, or of a part of it."""
    if isinstance(part, str):
        yield part
    else:
        for child in part.values() if isinstance(part, dict) else part:
            yield from pages(child)


def test_the_navigation_has_every_page_of_docs_once() -> None:
    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))

    assert len(listed) == len(set(listed))
    assert {page for page in listed if page.startswith("docs/")} == {
        str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")
    }
    assert all((ROOT / page).is_file() for page in listed)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page: str) -> None:
    text = re.sub(
        r"^```.*?^```|`[^`\n]+`", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, _ = link.partition("#")
        if path and not path.startswith(("http:", "https:")):
            assert ((ROOT / page).parent / path).resolve().exists(), link


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_what_contributors_are_led_to_is_there(page: str) -> None:
    """Files and folders are named from the root, or from any folder of the package."""
    bases = [ROOT, ROOT / "tgi", *(path for path in (ROOT / "tgi").rglob("*") if path.is_dir())]
    named = re.findall(r"`([\w./-]+\.(?:py|tsv)|[\w./-]+/)`", (ROOT / page).read_text("utf-8"))
    assert len(named) > 50
    for name in named:
        assert "NAME" in name or any((base / name).exists() for base in bases), name


@functools.cache
def strings_of_the_sources() -> str:
    """Every string of `tgi/`, one a line; "…" stands for what is filled in."""
    found = []
    for path in (ROOT / "tgi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value.replace("{}", "…").replace("%s", "…"))
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
    return "\n".join(found)


@pytest.mark.parametrize(
    "heading", re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)
)
def test_an_explained_message_is_one_of_the_servers(heading: str) -> None:
    fence = "`` " if heading.startswith("``") else "`"
    message = heading.removeprefix(fence).removesuffix(fence[::-1])

    assert re.search(".*".join(map(re.escape, message.split("…"))), strings_of_the_sources()) is not None
