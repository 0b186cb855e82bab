"""Write a version wherever one is written: `python release/version.py 0.2.0`.

`tgi/__init__.py` has the server's. Its adapters and kernels have the same, and depend on one minor version of
each other; the chart has it twice. The changelog's section "Unreleased" becomes the version's.
"""

import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNRELEASED = "## Unreleased\n"


class ReleaseError(Exception):
    """The version cannot be written; the text is one line."""


def bounds(version: str) -> str:
    """Return what a part may ask of another: `>=0.2,<0.3` for 0.2.1."""
    major, minor, _ = map(int, version.split("."))
    return f">={major}.{minor},<{major}.{minor + 1}"


def write_version(root: Path, version: str) -> None:
    """Change every file that has the version. Raises ReleaseError."""
    if re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        raise ReleaseError(f"{version!r} is no version like 0.2.0")
    _replace(root / "tgi" / "__init__.py", r'(?m)^(__version__ = )".*"$', rf'\1"{version}"')
    _replace(
        root / "deploy" / "helm" / "tgi" / "Chart.yaml", r"(?m)^((?:appV|v)ersion:) .*$", rf"\1 {version}"
    )
    for path in (root / "pyproject.toml", *root.glob("adapters/*/pyproject.toml")):
        _replace(path, r'"(tgi-[\w-]+)>=[\d.]+,<[\d.]+', rf'"\1{bounds(version)}', needed=False)
    for path in (*root.glob("adapters/*/pyproject.toml"), *root.glob("kernels/*/pyproject.toml")):
        _replace(path, r'(?m)^(version = )".*"$', rf'\1"{version}"')


def write_section(changelog: Path, version: str, day: datetime.date) -> str:
    """Give what is unreleased to the version, and return it. Raises ReleaseError."""
    text = changelog.read_text("utf-8")
    before, heading, rest = text.partition(UNRELEASED)
    section = re.split(r"(?m)^## ", rest)[0].strip()
    if not heading or not section:
        raise ReleaseError(f"{changelog.name} has nothing below {UNRELEASED.strip()!r}: say what has changed")
    changelog.write_text(f"{before}{UNRELEASED}\n## {version}, {day:%-d %B %Y}\n{rest}", "utf-8")
    return section


def _replace(path: Path, pattern: str, replacement: str, *, needed: bool = True) -> None:
    text, count = re.subn(pattern, replacement, path.read_text("utf-8"))
    if needed and not count:
        raise ReleaseError(f"{path} has no version")
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    try:
        write_version(ROOT, sys.argv[1])
        print(write_section(ROOT / "CHANGELOG.md", sys.argv[1], datetime.datetime.now(datetime.UTC).date()))
    except ReleaseError as error:
        sys.exit(f"release: {error}")
