"""`tgi plan` as a user types it."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tgi.cli import app
from tgi.testing.models import make_llama

from .llamas import LLAMA_31_8B, LLAMA_31_70B

README = (
    "--device gaudi2 --max-input-tokens 512 --max-total-tokens 1024 --max-batch-size 8 "
    "--max-batch-prefill-tokens 2048"
).split()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with nothing but config.json."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_31_8B))
    return tmp_path


def tgi(*arguments: str) -> int:
    return int(app(["plan", *arguments], exit_on_error=False))


def test_a_page(small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert tgi(str(small), *README) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(len(line) for line in out.splitlines()) <= 80
    for words in (
        "on 1 x gaudi2, bfloat16",
        "weights                               15,317 MiB",
        "KV cache, ",
        "16 MiB a block",
        "graphs; warming them up takes about",
        "Padding adds",
        "takes 6.53 ms of every step",
    ):
        assert words in out, words


def test_the_same_numbers_as_json(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tgi(str(small), *README, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    memory = found["memory"]
    assert memory["total"] == int(94.62 * (1 << 30))
    assert memory["kv_block"] == 16 << 20
    assert memory["tokens_that_fit"] == 128 * memory["kv_blocks_that_fit"]
    assert found["graphs"] == len(found["buckets"])
    assert found["fits"] is True
    assert [speed["rows"] for speed in found["decode"]] == [1, 2, 4, 8]
    assert all(speed["rate"] < speed["bound"] for speed in found["decode"])


def test_what_rounding_does_to_the_loss(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tgi(str(small), "--device", "cpu", "--max-total-tokens", "1024", "--quantize", "int8") in (0, 1)
    out = capsys.readouterr().out
    assert "bfloat16, weights in int8" in out
    assert "raises the demo model's loss on unseen words by 0.04%" in out


def test_buckets_are_chosen_as_the_options_say(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tgi(str(small), *README, "--json", "--max-graphs", "20") == 0
    assert json.loads(capsys.readouterr().out)["graphs"] == 20
    assert tgi(str(small), *README, "--max-graphs", "1") == 1
    assert "`max_graphs` must be >= " in capsys.readouterr().err


def test_padding_of_what_was_recorded(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert tgi(str(small), *README) == 0
    assert "steps, if all shapes are equally likely." in capsys.readouterr().out
    shapes = small / "shapes.json"
    shapes.write_text('{"block_size": 128, "decode": [[5, 23, 1000]], "prefill": [[1, 200, 1, 90]]}')
    assert tgi(str(small), *README, "--bucket-shapes", str(shapes)) == 0
    assert "steps, if they are as recorded." in capsys.readouterr().out


def test_a_model_that_is_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_31_70B))
    assert tgi(str(tmp_path), *README) == 1
    assert "Not enough memory to handle `max_total_tokens=1024`" in " ".join(capsys.readouterr().out.split())
    assert tgi(str(tmp_path), *README, "--num-shard", "8") == 0


def test_weights_in_the_folder_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path)
    numbers = sum(
        (1 if len(shape) == 1 else shape[1]) * shape[0]
        for shape in (tensor["shape"] for tensor in header(folder / "model.safetensors"))
    )
    assert tgi(str(folder), "--device", "gaudi3", "--max-total-tokens", "512", "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory"]["weights"] == 2 * numbers


def header(path: Path) -> list[dict[str, list[int]]]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return [value for name, value in json.loads(data[8 : 8 + size]).items() if name != "__metadata__"]


@pytest.mark.parametrize(("device", "sides"), [("gaudi2", (1200, 800)), ("cpu", (600, 400))])
def test_a_picture(small: Path, device: str, sides: tuple[int, int]) -> None:
    path = small / "plan.png"
    assert tgi(str(small), "--device", device, *README[2:], "--plot", str(path)) == 0
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == sides
    assert len(data) > 10_000


def test_a_picture_without_matplotlib(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert tgi(str(small), *README, "--plot", str(small / "plan.png")) == 1
    assert capsys.readouterr().err == (
        "tgi: --plot needs matplotlib, which is not installed: pip install 'tgi-server[plots]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "hpu"], "a plan needs --device a100, cpu, gaudi2, gaudi3, h100, h200, not 'hpu'"),
        (["--device", "gaudi2", "--num-shard", "5"], "over 5 ranks; --num-shard can be 1, 2, 4, 8, 16, 32"),
        (["--device", "gaudi2", "--max-input-tokens", "9", "--max-total-tokens", "9"], "must be <"),
        (["--device", "gaudi2", "--plot", "/none/plan.png"], "--plot /none/plan.png: "),
        (["--device", "gaudi2", "--plot", "plan.doc"], "--plot plan.doc: "),
        (["--model-id", "/none", "--device", "gaudi2"], "there is no folder /none"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    small: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model-id" in arguments else [str(small)]
    assert tgi(*model, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line


def test_neither_torch_nor_a_picture_is_imported_in_vain(small: Path) -> None:
    code = (
        "import sys; from tgi.cli import app; "
        f"app(['plan', {str(small)!r}, '--device', 'gaudi2'], exit_on_error=False); "
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_fallback_model_needs_nothing_but_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"architectures": ["OPTForCausalLM"], "model_type": "opt", "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert tgi(str(tmp_path), "--device", "gaudi2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory"]["weights"] > 2 * 50272 * 768


def test_a_plan_names_the_base_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert tgi(str(tmp_path), "--device", "gaudi2") == 1
    assert "is an adapter (LoRA) of org/base" in capsys.readouterr().err
