"""The kernels of every instruction set that is built and can run, and those for AMX, emulated."""

import platform
import shutil
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tgi_cpu_kernels import Kernels, Unavailable, load, open_library
from tgi_cpu_kernels.build import TARGETS, compile_library, digest, library, supported

EMULATED = "amx_emulated"


def is_current(name: str) -> bool:
    """Return whether a library is built from these sources and works here."""
    try:
        load(name)
    except Unavailable:
        return False
    return True


BUILT = [name for name in supported() if library(name).exists() and is_current(name)]


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> Path:
    """Compile the code for AMX with tile instructions in plain C++, once for these sources."""
    if platform.machine() != "x86_64" or not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("needs an x86-64 processor and a C++ compiler")
    header = Path(__file__).with_name("emulated_tiles.h")
    best = next(name for name in supported() if name != "amx")
    version = blake2b(digest() + header.read_bytes() + best.encode(), digest_size=8).hexdigest()
    path = pytestconfig.cache.mkdir("tiles") / f"{version}.so"
    if not path.exists():
        with TemporaryDirectory(dir=path.parent) as folder:
            compile_library(Path(folder) / path.name, (*TARGETS[best][1], "-O1", "-include", str(header)))
            (Path(folder) / path.name).replace(path)
    return path


@pytest.fixture(params=[*BUILT, EMULATED])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of an instruction set, with three threads."""
    if request.param == EMULATED:
        kernels = open_library(request.getfixturevalue("emulated"), EMULATED)
    else:
        kernels = load(request.param)
    kernels.use_threads(3)
    return kernels
