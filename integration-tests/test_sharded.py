"""A server of two ranks, with the flags of TGI's README for Gaudi."""

from typing import Any

import pytest

FLAGS = {
    "sharded": "true",
    "num_shard": 2,
    "max_input_tokens": 512,
    "max_total_tokens": 1024,
    "max_batch_size": 8,
    "max_batch_prefill_tokens": 2048,
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("hpu-sim", marks=pytest.mark.slow)])
def test_two_ranks_start_and_answer(start: Any, device: str) -> None:
    server = start("tgi serve", **FLAGS, device=device).wait_ready()
    assert len(server.ranks()) == 2
    answer = server.generate("violin " * 100, max_new_tokens=5, details=True)
    assert answer["details"]["generated_tokens"] == 5
    server.end()
