"""Releases of Gaudi's software with their torch and Python. Imports nothing: the Dockerfile reads it too."""

RELEASES = {
    "1.16": ("2.2.2", ("3.10",)),
    "1.17": ("2.3.1", ("3.10",)),
    "1.18": ("2.4.0", ("3.10",)),
    "1.19": ("2.5.1", ("3.10",)),
    "1.20": ("2.6.0", ("3.10",)),
    "1.21": ("2.6.0", ("3.10", "3.11", "3.12")),
    "1.22": ("2.7.1", ("3.10", "3.11", "3.12")),
    "1.23": ("2.9.0", ()),
    "1.24.0": ("2.10.0", ("3.12",)),
    "1.24.1": ("2.11.0", ()),
}
"""Release -> version of torch, and versions of Python as far as they are known, from Intel's support matrices
and images. A release with two numbers stands for all its patches."""
