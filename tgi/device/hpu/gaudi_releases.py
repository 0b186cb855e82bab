"""Releases of Gaudi's software with their torch and Python. Imports nothing: the Dockerfile reads it too."""

RELEASES = {
    "1.16": ("2.2.2", ("3.10",)),
    "1.17": ("2.3.1", ("3.10",)),
    "1.18": ("2.4.0", ("3.10",)),
    "1.19": ("2.5.1", ("3.10",)),
    "1.20": ("2.6.0", ("3.10",)),
    "1.21": ("2.6.0", ("3.10", "3.11", "3.12")),
    "1.22": ("2.7.1", ("3.10", "3.11", "3.12")),
    "1.23": ("2.9.0", ("3.10", "3.11", "3.12")),
    "1.24.0": ("2.10.0", ("3.10", "3.11", "3.12")),
    "1.24.1": ("2.11.0", ("3.10", "3.11", "3.12")),
}
"""Release -> version of torch, and versions of Python (images of Ubuntu 22.04 have older ones, of 24.04 the
newest), from Intel's support matrices and images. A release with two numbers stands for all its patches."""


def known_pair(release: str) -> "tuple[str, tuple[str, ...]] | None":
    """Return torch and Python of a release, "1.24.1"; None if that very patch is not known."""
    return RELEASES.get(release) or RELEASES.get(minor(release))


def is_known_minor(release: str) -> bool:
    """Return whether some patch of the release's minor version is known."""
    return minor(release) in map(minor, RELEASES)


def minor(release: str) -> str:
    """Return the first two numbers of a release."""
    return ".".join(release.split(".")[:2])


def public_version(torch: str) -> str:
    """Return torch's version without what Intel's builds add: "2.10.0" of "2.10.0a0+gitc1e5ed4"."""
    return torch.partition("+")[0].partition("a")[0]
