"""A server's wall clock, which can be set while that of the machine stays as it is."""

import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

COMPILER = shutil.which(os.environ.get("CC", "cc"))
"""A C compiler; None: there is none, and so no such clock."""


class WallClock:
    """A clock of all processes that are started with `environment`. It lasts as long as this object."""

    def __init__(self) -> None:
        assert COMPILER is not None
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name, "clock.so")
        source = Path(__file__).parent / "clock.c"
        subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._offset = Path(self._folder.name, "offset")
        self._offset.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(self._offset)}

    def jump(self, seconds: int) -> None:
        """Let the clock be `seconds` ahead of the true time."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("q", seconds))
