"""Child processes of the tests' process, which has servers of other tests beside them under pytest-xdist."""

import contextlib

import psutil


def children_running(argument: str) -> list[psutil.Process]:
    """Return those that have this word in their command line, such as the module of Python that they run; the
    oldest first."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie
            if argument in child.cmdline():
                found.append(child)
    return sorted(found, key=lambda child: child.create_time())
