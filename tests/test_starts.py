"""Servers start and answer with the flags that users have, on every device that runs here.

`python -m tests.test_starts` writes the table in docs/starts.md.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tgi_simulated_gaudi.device import open_card

from tests.local_ranks import started
from tgi.cli import parse_options
from tgi.device.base import Device
from tgi.device.static import StaticDevice
from tgi.layers.loading import describe
from tgi.planning.planner import Planner
from tgi.planning.setup import read_setup
from tgi.plugins import DeviceSpec, devices, load_plugins
from tgi.testing.engine import generate
from tgi.testing.models import make_llama
from tgi.worker.runner import open_device

PAGE = Path(__file__).parents[1] / "docs" / "starts.md"
SPECS = devices(load_plugins())
DEVICES = {
    "cpu": SPECS["cpu"],
    "cuda": SPECS["cuda"],
    "gaudi2-lazy": SPECS["hpu-sim"],
    "gaudi2-compile": SPECS["hpu-sim"],
}
"""Facts about each device. The GPU's steps run in plain torch, whose shapes are the GPU's."""
SHARDED = ("--sharded", "--num-shard", "--tensor-parallel-size")

FLAGS = {
    "TGI's defaults": "",
    "Gaudi's README": "--max-input-tokens 512 --max-total-tokens 1024 --max-batch-size 4 "
    "--max-batch-prefill-tokens 2048",
    "Gaudi's README, sharded": "--sharded true --num-shard 8 --max-input-tokens 512 --max-total-tokens 1024 "
    "--max-batch-size 8 --max-batch-prefill-tokens 2048",
    "Gaudi's integration tests": "--max-input-tokens 512 --max-total-tokens 1024 --max-batch-size 4",
    "Gaudi's docker commands, 8B": "--max-input-tokens 1024 --max-total-tokens 2048 "
    "--max-batch-prefill-tokens 2048 --max-batch-size 32 --max-waiting-tokens 7 --waiting-served-ratio 1.2 "
    "--max-concurrent-requests 64",
    "Gaudi's docker commands, 70B": "--sharded true --num-shard 8 --max-input-tokens 1024 "
    "--max-total-tokens 2048 --max-batch-prefill-tokens 4096 --max-batch-size 256 --max-waiting-tokens 7 "
    "--waiting-served-ratio 1.2 --max-concurrent-requests 512",
    "Gaudi's docker commands, Llava": "--max-input-tokens 4096 --max-batch-prefill-tokens 16384 "
    "--max-total-tokens 8192 --max-batch-size 4",
    "TGI's launcher, equal limits": "--max-total-tokens 2048 --max-batch-prefill-tokens 2048",
    "TGI's launcher, old names": "--max-input-length 3696 --max-total-tokens 4096 "
    "--max-batch-prefill-tokens 4096",
    "TGI's launcher, a cache of one text": "--max-input-length 2048 --max-batch-prefill-tokens 2048 "
    "--max-total-tokens 4096 --max-batch-total-tokens 4096",
    "TGI's launcher, long RoPE": "--rope-scaling dynamic --rope-factor 2 --max-input-tokens 1000",
    "SageMaker": "--max-input-tokens 1024 --max-total-tokens 2048 --max-batch-total-tokens 8192",
    "vLLM's defaults": "--max-num-batched-tokens 8192 --max-num-seqs 256",
    "vLLM, usual": "--max-model-len 8192 --gpu-memory-utilization 0.9 --enable-prefix-caching "
    "--enable-chunked-prefill --disable-log-requests --seed 0 --block-size 128",
    "vLLM, eager and sharded": "--tensor-parallel-size 2 --enforce-eager --max-model-len 2048 "
    "--max-num-seqs 16 --swap-space 4",
    "vLLM, latency": "--max-num-seqs 1 --max-num-batched-tokens 16384 --no-enable-prefix-caching",
    "one long text": "--max-model-len 32832 --max-num-seqs 2",
    "long texts in large steps": "--max-input-tokens 32768 --max-total-tokens 33792 --max-batch-size 2 "
    "--max-batch-prefill-tokens 8192",
    "a limit beyond the device's": "--max-total-tokens 100 --max-batch-prefill-tokens 100000",
    "steps smaller than a block": "--max-total-tokens 300 --max-batch-prefill-tokens 7 --max-batch-size 3",
    "the shortest texts": "--max-total-tokens 2 --max-batch-size 1",
}
"""Flags that people start servers with, by where they come from."""
LONG = ("one long text", "long texts in large steps")
LONG_ON = ("cpu", "gaudi2-lazy")
"""Devices that read 32,768 tokens here; plain torch in the place of a GPU's kernels takes minutes."""
LONGEST_STEP = 8192
"""Tokens up to which powers of two are tried: more than 64 blocks on every device."""
SMALL = "--max-batch-size 2 --max-graphs 12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer that was made for long texts."""
    return make_model(tmp_path_factory.mktemp("starts"))


def make_model(folder: Path) -> Path:
    return make_llama(
        folder,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=65536,
    )


@contextmanager
def opened(name: str) -> Iterator[Device]:
    if name == "cpu":
        yield open_device("cpu", 1)
    elif name == "cuda":
        yield StaticDevice(1)
    else:
        with open_card(name) as device:
            yield device


def on_one_rank(flags: str) -> list[str]:
    """The same limits, without the flags that ask for more ranks than one process can be."""
    return re.sub(rf"({'|'.join(SHARDED)}) \S+", "", flags).split()


async def check(folder: Path, name: str, flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start; then ask with one token, and with as many as may come."""
    arguments = ["--model-id", str(folder), *on_one_rank(flags)]
    with opened(name) as device:
        async with started(arguments, device, DEVICES[name], monkeypatch) as service:
            engine = service.engine
            assert engine is not None
            limits = engine.limits
            for length in (1, limits.max_input_tokens):
                count = min(3, limits.max_total_tokens - length)
                tokens: list[Any] = await generate(
                    engine.scheduler, engine.tokenizer, [5 + n % 7 for n in range(length)], count
                )
                assert 1 <= len(tokens) <= count


CASES = [
    pytest.param(name, flags, id=f"{name}, {source}", marks=[] if name == "cpu" else pytest.mark.slow)
    for source, flags in FLAGS.items()
    for name in DEVICES
    if source not in LONG or name in LONG_ON
]


@pytest.mark.seconds(300)
@pytest.mark.parametrize(("name", "flags"), CASES)
async def test_a_server_starts_and_answers(
    folder: Path, name: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check(folder, name, flags, monkeypatch)


POWERS = [
    pytest.param(name, power, id=f"{name}-{power}", marks=[] if name == "cpu" else pytest.mark.slow)
    for name, spec in DEVICES.items()
    for power in range((LONGEST_STEP // spec.block_size).bit_length())
]


@pytest.mark.seconds(300)
@pytest.mark.parametrize(("name", "power"), POWERS)
async def test_texts_of_a_block_more_and_less_than_powers_of_two(
    folder: Path, name: str, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for blocks in (2**power - 1, 2**power, 2**power + 1):
        tokens = max(blocks * DEVICES[name].block_size, 2)
        flags = f"--max-total-tokens {tokens} --max-batch-prefill-tokens {tokens} {SMALL}"
        await check(folder, name, flags, monkeypatch)


def table() -> list[str]:
    """Return the rows of docs/starts.md: where flags come from, the flags, and the limits on each device."""
    columns = {"CPU": "cpu", "GPU": "cuda", "Gaudi": "hpu"}
    rows = [f"| from | flags | {' | '.join(columns)} |", "| --- | --- |" + " --- |" * len(columns)]
    with TemporaryDirectory() as path:
        folder = make_model(Path(path))
        for source, flags in FLAGS.items():
            cells = [limits_of(folder, flags, SPECS[name]) for name in columns.values()]
            rows.append(f"| {source} | {f'`{flags}`' if flags else 'none'} | {' | '.join(cells)} |")
    return rows


def limits_of(folder: Path, flags: str, spec: DeviceSpec) -> str:
    """Return the tokens of a prompt and of a text, the texts at once, and the tokens of a prefill step."""
    setup = read_setup(folder, parse_options(on_one_rank(flags)), spec, {})
    described = describe(setup.describe_command())
    limits = Planner.open(setup, described, next(iter(spec.cards.values()))).limits
    sizes = (
        limits.max_input_tokens,
        limits.max_total_tokens,
        limits.max_batch_size,
        limits.max_batch_prefill_tokens,
    )
    return " / ".join(f"{size:,}" for size in sizes)


def test_the_page_lists_what_is_started() -> None:
    assert [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")] == table()


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(r"(?:^\|.*\n)+", "\n".join(table()) + "\n", text, flags=re.MULTILINE), "utf-8")
