"""Compiles the kernels: `python -m tgi_cpu_kernels.build [--all]`, for this processor or for every one.

Each instruction set has a library, so that a wheel serves every processor without dispatching code.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"
_AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
_AVX512 = (("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"), ("-mavx2", "-mfma", *_AVX512_FLAGS))
_AVX512_VNNI = ((*_AVX512[0], "avx512_vnni"), (*_AVX512[1], "-mavx512vnni"))
_AVX512_BF16 = ((*_AVX512_VNNI[0], "avx512_bf16"), (*_AVX512_VNNI[1], "-mavx512bf16"))
TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "amx": (
        (*_AVX512_BF16[0], "amx_tile", "amx_bf16", "amx_int8"),
        (*_AVX512_BF16[1], "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    ),
    "avx512_bf16": _AVX512_BF16,
    "avx512_vnni": _AVX512_VNNI,
    "avx512": _AVX512,
    "avx2_vnni": (("avx2", "fma", "avx_vnni"), ("-mavx2", "-mfma", "-mavxvnni")),
    "avx2": (("avx2", "fma"), ("-mavx2", "-mfma")),
    "baseline": ((), ()),
}
"""Flags of /proc/cpuinfo that an instruction set needs, and of the compiler, the best first."""
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
)


def digest() -> bytes:
    """Return what tells these sources from others, in hexadecimal; empty in a wheel, which has none."""
    sources = sorted(SOURCES.glob("*"))
    return blake2b(b"".join(map(Path.read_bytes, sources))).hexdigest()[:16].encode() if sources else b""


class BuildError(Exception):
    """The compiler is missing, or fails; the message is one line, or the compiler's own."""


def supported() -> list[str]:
    """Return the names of the instruction sets of this processor, the best first."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags = {word for line in text.splitlines() if line.startswith("flags") for word in line.split()[2:]}
    return [name for name, (needed, _) in TARGETS.items() if flags.issuperset(needed)]


def wanted() -> list[str]:
    """Return the instruction sets that this machine needs: the best, and what it falls back on."""
    names = supported()
    return names[: 2 if names[0] == "amx" else 1]


def library(name: str) -> Path:
    """Return the path of the library for an instruction set."""
    return HERE / f"kernels-{platform.machine()}-{name}.so"


def build(names: list[str]) -> None:
    """Compile the library for each instruction set. Raises BuildError after the last, if one failed."""
    failures = []
    for name in names:
        try:
            compile_library(library(name), TARGETS[name][1])
        except BuildError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def compile_library(target: Path, flags: tuple[str, ...]) -> None:
    """Compile a library with these flags for the instruction set. Raises BuildError."""
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler: install g++ (Debian: apt-get install g++), then build again")
    every = [*_FLAGS, *flags, f'-DTGI_SOURCES="{digest().decode()}"']
    objects = {source: target.with_suffix(f".{source.stem}.o") for source in SOURCES.glob("*.cpp")}
    compiling = [[compiler, *every, "-c", str(source), "-o", str(obj)] for source, obj in objects.items()]
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(_run, compiling))
        unfinished = target.with_suffix(".new")
        _run([compiler, "-shared", "-pthread", *map(str, objects.values()), "-o", str(unfinished)])
        unfinished.replace(target)
    finally:
        for obj in objects.values():
            obj.unlink(missing_ok=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr}")


def main() -> int:
    """Build for this processor, or with --all for every one; return the exit code."""
    names = list(TARGETS) if "--all" in sys.argv[1:] else wanted()
    try:
        build(names)
    except BuildError as error:
        print(f"tgi-cpu-kernels: {error}", file=sys.stderr)
        return 1
    print(*(library(name) for name in names), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
