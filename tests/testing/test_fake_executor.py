"""The stand-in for ranks shows the API what ranks would: masks, barred ends, likely prompt tokens."""

import trio

from tgi.protocol import Bucket, Result, Step, floats, ints, unpack_floats, unpack_ints
from tgi.testing.driver import lane_params
from tgi.testing.fake_executor import FakeExecutor


def execute(**columns: object) -> Result:
    """A prefill step of two rows, for which the script draws 5."""
    step = {
        "number": 1,
        "bucket": Bucket(2, 3, 1, prefill=True),
        "lanes": ints([0, 1]),
        "starts": ints([0, 0]),
        "lengths": ints([3, 1]),
        "samples": ints([1, 1]),
        "draws": ints([0, 0]),
        "tokens": ints([7, 8, 9, 7]),
        "params": (lane_params(0), lane_params(1)),
    }

    async def main() -> Result:
        executor = FakeExecutor(lambda _params, _draw: 5)
        await executor.send(Step(**{**step, **columns}))  # type: ignore[arg-type]
        return await executor.receive()

    return trio.run(main)


def tokens(**columns: object) -> list[int]:
    return unpack_ints(execute(**columns).tokens).tolist()


def test_the_script_decides_where_its_token_may_come() -> None:
    assert tokens() == [5, 5]
    assert tokens(masked=ints([1]), masks=(1 << 37 | 1 << 40).to_bytes(8, "little")) == [5, 37]
    both = (1 << 5 | 1 << 3).to_bytes(4, "little") + (1 << 9 | 1 << 6).to_bytes(4, "little")
    assert tokens(masked=ints([0, 1]), masks=both) == [5, 6]


def test_ends_do_not_come_too_early() -> None:
    params = lane_params(0, min_tokens=2, ends=[5, 0, 2]), lane_params(1)
    assert tokens(params=params) == [1, 5]
    assert tokens(params=params, draws=ints([1, 0])) == [1, 5]
    assert tokens(params=params, draws=ints([2, 0])) == [5, 5]


def test_prompts() -> None:
    result = execute(targets=ints([8, 9, -1, -1]), prompt_top=2)
    assert unpack_ints(result.prompt_top_tokens).tolist() == [8, 9, 9, 10]
    logprobs = unpack_floats(result.prompt_logprobs)
    assert result.prompt_top_logprobs[:8] == floats([logprobs[0], logprobs[0] - 1])
    assert len(logprobs) == 2, "of those that are asked for"
    assert len(result.prompt_top_logprobs) == 2 * 2 * 4
