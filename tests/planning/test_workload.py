"""Workloads: assumed, counted, written and read."""

from pathlib import Path

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi.config import Options
from tgi.planning.shapes import ShapeLimits
from tgi.planning.workload import (
    ASSUMED,
    Recording,
    ShapeCounts,
    ShapesError,
    Workload,
    open_recording,
    quantiles,
    rounded,
)
from tgi.plugins import devices, load_plugins
from tgi.protocol import Bucket

from .shape_limits import spaces

CPU, GAUDI = (devices(load_plugins())[name] for name in ("cpu", "hpu"))
SERVER = ShapeLimits(max_batch_size=16, max_batch_prefill_tokens=512, max_total_tokens=512, block_size=128)


@given(st.integers(0, 10**6))
def test_rounding_goes_up_by_three_per_cent_at_most(size: int) -> None:
    assert size <= rounded(size) <= size * (1 + 1 / 32)
    assert rounded(rounded(size)) == rounded(size)


@given(st.integers(0, 50), st.integers(-1, 500), st.integers(1, 40))
def test_quantiles_have_the_mean_of_all(first: int, more: int, most: int) -> None:
    found = quantiles(first, first + more, most)

    assert len(found) == min(most, more + 1)
    if found:
        assert sorted(set(found)) == found
        assert first <= found[0]
        assert found[-1] <= first + more
        assert np.mean(found) == pytest.approx(first + more / 2, abs=1)


@settings(deadline=None, max_examples=40)
@given(spaces)
def test_assumed_shapes_are_possible(of: ShapeLimits) -> None:
    workload = Workload.uniform(of)

    for rows, blocks in workload.decode.tolist():
        assert 1 <= rows <= of.max_batch_size
        assert rows <= blocks <= of.decode_blocks(rows)
    for rows, tokens, context in workload.prefill.tolist():
        assert 1 <= rows <= of.prefill_rows
        assert rows == 1 or rows * tokens <= of.max_batch_prefill_tokens
        assert 1 <= tokens <= of.longest_chunk
        assert 0 <= context <= of.context_blocks(tokens)
    assert workload.prefill_weights.sum() == pytest.approx(1)


def test_half_of_all_tokens_are_assumed_to_be_generated() -> None:
    workload = Workload.uniform(SERVER)

    prompt = (workload.prefill[:, 0] * workload.prefill[:, 1]) @ workload.prefill_weights
    assert workload.decode[:, 0] @ workload.decode_weights == pytest.approx(prompt, rel=0.1)


def test_counted_shapes_have_most_weight() -> None:
    counts = {Bucket(3, 1, 7): 30, Bucket(99, 1, 9999): 10, Bucket(1, 200, 1, prefill=True): 10}
    workload = Workload.counted(counts, SERVER)

    total = workload.decode_weights.sum() + workload.prefill_weights.sum()
    seen = {
        (*shape,): weight
        for shape, weight in zip(workload.decode.tolist(), workload.decode_weights, strict=True)
    }
    assert seen[3, 7] / total == pytest.approx(0.6 * (1 - ASSUMED), rel=0.06)
    assert seen[16, 64] / total == pytest.approx(0.2 * (1 - ASSUMED), rel=0.06)
    shapes, weights = workload.prefill.tolist()[-2:], workload.prefill_weights[-2:]
    assert shapes == [[1, 200, 1], [2, 200, 1]]
    assert weights / total == pytest.approx([0.2 * (1 - ASSUMED), 0.05 * (1 - ASSUMED)], rel=0.06)


def test_counts_go_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shapes.json"
    first = ShapeCounts(128)
    for shape in (Bucket(3, 1, 7), Bucket(3, 1, 7), Bucket(100, 1, 1001), Bucket(1, 1, 0, prefill=True)):
        first.add(shape)
    first.write(path)
    again = ShapeCounts.read(path, 128)
    again.add(Bucket(3, 1, 7))

    assert again.counts == {
        Bucket(3, 1, 7): 3,
        Bucket(100, 1, 1008): 1,
        Bucket(1, 1, 0, prefill=True): 1,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["shapes.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no shapes of steps"),
        ("[]", "holds no shapes of steps"),
        ('{"block_size": 128, "decode": [[1, 2]], "prefill": []}', "holds no shapes of steps"),
        (
            '{"block_size": 16, "decode": [], "prefill": []}',
            "counts blocks of 16 tokens",
        ),
        (
            '{"block_size": 128, "decode": [[1, 2, 0]], "prefill": []}',
            r"Expected `int` >= 1 - at `\$\.decode",
        ),
        (
            '{"block_size": 128, "decode": [[1, 2.5, 3]], "prefill": []}',
            r"Expected `int`, got `float` - at `\$\.decode",
        ),
        (
            '{"block_size": 128, "decode": [], "prefill": [[1, 5, -1, 3]]}',
            r"Expected `int` >= 0 - at `\$\.prefill",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "shapes.json"
    path.write_text(text)

    with pytest.raises(ShapesError, match=message):
        ShapeCounts.read(path, 128)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShapesError, match=r"missing\.json"):
        ShapeCounts.read(tmp_path / "missing.json", 128)


async def test_servers_at_the_same_time_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "shapes.json"
    servers = [Recording.open(path, 128) for _ in range(4)]

    async def serve(server: Recording) -> None:
        for _ in range(20):
            server.counts.add(Bucket(3, 1, 7))
            await server.save()

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(serve, server)
    assert ShapeCounts.read(path, 128).counts == {Bucket(3, 1, 7): 80}
    await servers[0].save()
    assert ShapeCounts.read(path, 128).counts == {Bucket(3, 1, 7): 80}
    assert [file.name for file in tmp_path.iterdir()] == ["shapes.json"]


async def test_counts_that_cannot_be_written_wait_for_the_next_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ShapesError, match="cannot be written: No such file or directory"):
        Recording.open(tmp_path / "missing" / "shapes.json", 128)
    recording = Recording.open(tmp_path / "shapes.json", 128)
    recording.path = tmp_path / "missing" / "shapes.json"
    recording.counts.add(Bucket(3, 1, 7))
    await recording.save()
    assert "No such file or directory" in caplog.text
    recording.path = tmp_path / "shapes.json"
    await recording.save()
    assert ShapeCounts.read(tmp_path / "shapes.json", 128).counts == {Bucket(3, 1, 7): 1}


def test_shapes_are_recorded_where_they_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = Options(record_shapes=tmp_path / "shapes.json")
    assert open_recording(Options(), GAUDI) is None
    assert not caplog.records
    assert open_recording(options, CPU) is None
    assert "--record-shapes has no effect: shapes do not matter on cpu" in caplog.text
    assert not (tmp_path / "shapes.json").exists()
    assert open_recording(options, GAUDI) == Recording(tmp_path / "shapes.json", ShapeCounts(128))
    assert (tmp_path / "shapes.json").exists()
