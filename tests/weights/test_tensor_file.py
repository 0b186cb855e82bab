"""Parts of tensors are those that safetensors itself gives; broken files are refused with what they lack."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tgi.weights import tensor_file
from tgi.weights.tensor_file import FileError, copy, open_file

TENSORS = {
    "matrix": torch.arange(7 * 10, dtype=torch.float32).reshape(7, 10).bfloat16(),
    "experts": torch.arange(3 * 4 * 5).reshape(3, 4, 5),
    "vector": torch.arange(6.0),
    "scalar": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "mask": torch.tensor([True, False]),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("piece", [1, 40, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_in_any_dtype_in_pieces_of_any_size(path, monkeypatch, piece, dtype):
    monkeypatch.setattr(tensor_file, "PIECE", piece)
    file = open_file(path)
    assert set(file.tensors) == set(TENSORS)
    for name, whole in TENSORS.items():
        for dim in range(max(1, whole.dim())):
            length = whole.shape[dim] if whole.dim() else 1
            for first, count in ((0, length), (length // 2, length - length // 2)):
                part = whole.narrow(dim, first, count) if whole.dim() else whole
                out = torch.full(part.shape, 99.0).to(dtype)
                copy(file, name, out, dim, first)
                assert torch.equal(out, part.to(dtype)), (name, dim, first)


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="torch 2.6 has no powers of 2 in 8 bits")
def test_powers_of_two_in_8_bits(tmp_path):
    powers, out = torch.tensor([0.25, 1.0, 128.0]), torch.empty(3)
    save_file({"a": powers.to(torch.float8_e8m0fnu)}, tmp_path / "a.safetensors")
    copy(open_file(tmp_path / "a.safetensors"), "a", out)
    assert torch.equal(out, powers)


def test_what_has_been_copied_is_given_back(tmp_path):
    """The file stays mapped, but its pages do not count as this process's memory."""
    size = 64 << 20
    save_file({"a": torch.ones(size // 4096, 1024)}, tmp_path / "a.safetensors")
    file, out = open_file(tmp_path / "a.safetensors"), torch.empty(size // 4096, 1024)
    before = mapped_bytes()
    copy(file, "a", out)
    assert torch.equal(out, torch.ones(1).expand_as(out))
    assert mapped_bytes() - before < size / 4


def mapped_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile:"))


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_dtype_that_nobody_knows_matters_only_to_who_reads_it(tmp_path):
    file = open_file(write(tmp_path / "a", {"odd": entry("F4", (4,), (0, 2)), "b": entry()}, b"\0" * 8))
    with pytest.raises(FileError, match="dtype is not known"):
        copy(file, "odd", torch.empty(4))
    copy(file, "b", torch.empty(2))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(), "b": entry(offsets=(8, 16))}, "it ends within or before 'b'"),
        ({f"t{i}": entry(offsets=(8 + 8 * i, 16 + 8 * i)) for i in range(9)}, "'t0', .* 't4' and 4 more"),
        ({"a": entry(shape=(3,))}, "contradicts itself about 'a'"),
        ({"a": entry(offsets=(8, 0))}, "contradicts itself about 'a'"),
        ({"a": entry(offsets=(-8, 0))}, "contradicts itself about 'a'"),
        ({"a": {"dtype": "F32"}}, "says nothing that makes sense of 'a'"),
        ({"a": 1}, "says nothing that makes sense of 'a'"),
        ([], "no object"),
        (b"{", "not JSON"),
    ],
)
def test_files_that_are_broken(tmp_path, header, message):
    with pytest.raises(FileError, match=message):
        open_file(write(tmp_path / "a", header, b"\0" * 8))


@pytest.mark.parametrize("content", [b"", b"\1\0", struct.pack("<Q", 99) + b"{}", struct.pack("<Q", 0)])
def test_a_header_that_is_cut_off(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FileError, match="cut off"):
        open_file(tmp_path / "a")


def test_a_pointer_of_git_lfs(tmp_path):
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    (tmp_path / "a").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n")
    with pytest.raises(FileError, match="git lfs pull"):
        open_file(tmp_path / "a")
