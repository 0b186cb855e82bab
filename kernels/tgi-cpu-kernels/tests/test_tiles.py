"""The code for AMX on emulated tile instructions, and how a library that fails is passed over."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tgi_cpu_kernels import Kernels, Unavailable, load, open_library
from tgi_cpu_kernels.build import SOURCES, TARGETS, library, supported

VECTORS = next(name for name in supported() if name != "amx")


@pytest.fixture
def tiles(emulated: Path) -> Kernels:
    return open_library(emulated, "amx")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("n", "k"), [(64, 128), (33, 97), (1, 1), (250, 31)])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_number_of_rows_gives_each_row_the_same_bits(
    tiles: Kernels, n: int, k: int, threads: int
) -> None:
    tiles.use_threads(threads)
    x, weight = random(200, k), random(n, k, seed=1) / math.sqrt(k)
    packed, expected = tiles.pack(weight), x.double() @ weight.double().T
    whole = tiles.linear(x, packed, n)
    assert (whole.double() - expected).abs().max() <= 2**-8 * expected.abs().max()
    for rows in range(1, 65):
        assert torch.equal(tiles.linear(x[rows : 2 * rows], packed, n), whole[rows : 2 * rows])


@pytest.mark.parametrize(("k", "group"), [(512, 512), (500, 128), (192, 64), (100, 100), (96, 32)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_of_integers_give_the_bits_of_vectors(
    tiles: Kernels, k: int, group: int, symmetric: bool
) -> None:
    vectors = load(VECTORS)
    x, weight = random(70, k), random(50, k, seed=1)
    expected, mine = (each.round_and_pack(weight, 8, group, symmetric=symmetric) for each in (vectors, tiles))
    assert torch.equal(mine.numbers, expected.numbers)
    for rows in (1, 16, 17, 33, 70):
        result = tiles.quantized_linear(x[:rows], mine)
        assert torch.equal(result, vectors.quantized_linear(x[:rows], expected))


REASONS = {
    "refused": "the system does not permit tile registers",
    "illegal": "an instruction failed",
    "wrong": "a product is wrong",
}


@pytest.mark.parametrize("failure", REASONS)
def test_a_library_that_fails_is_passed_over(
    emulated: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    files = {"amx": emulated, VECTORS: library(VECTORS)}
    monkeypatch.setenv("TGI_EMULATED_TILES", failure)
    monkeypatch.delenv("TGI_CPU_KERNELS", raising=False)
    monkeypatch.setattr("tgi_cpu_kernels.supported", lambda: ["amx", VECTORS])
    monkeypatch.setattr("tgi_cpu_kernels.library", files.__getitem__)
    kernels = load()
    assert kernels.name == VECTORS
    assert kernels.remark == f"the kernels for amx are not used: {REASONS[failure]}"
    with pytest.raises(Unavailable, match=REASONS[failure]):
        load("amx")


@pytest.mark.skipif(not library(VECTORS).exists(), reason="no library is built for vectors alone")
def test_a_variable_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGI_CPU_KERNELS", VECTORS)
    assert load().name == VECTORS
    monkeypatch.setenv("TGI_CPU_KERNELS", "avx1024")
    with pytest.raises(Unavailable, match="not built for avx1024"):
        load()


def test_the_library_for_amx_has_its_instructions(emulated: Path) -> None:  # noqa: ARG001
    """The fixture skips where there is no compiler."""
    compiler = shutil.which("g++") or "clang++"
    command = [compiler, "-std=c++17", "-O1", "-S", "-o", "-", *TARGETS["amx"][1]]
    found = [
        subprocess.run([*command, SOURCES / file], capture_output=True, text=True, check=True).stdout
        for file in ("linear.cpp", "quantized.cpp")
    ]
    for text, product in zip(found, ("tdpbf16ps", "tdpbsud"), strict=True):
        assert {"ldtilecfg", "tilerelease", "tileloadd", "tilestored", product} <= set(text.split())
