"""The division of layers into stages, compared with all divisions that there are."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from tgi.weights import LayerSizes, Stage


def divisions(count: int, stages: int) -> Iterator[tuple[int, ...]]:
    for borders in combinations(range(1, count), stages - 1):
        yield tuple(end - begin for begin, end in pairwise((0, *borders, count)))


def greatest(sizes: LayerSizes, division: Sequence[int]) -> tuple[int, int]:
    """The most that a stage reads, and the most that one keeps."""
    layers = list(sizes.layers)
    parts = [sum(layers[sum(division[:n]) : sum(division[: n + 1])]) for n in range(len(division))]
    parts[-1] += sizes.after
    return max(parts), max(parts[0] + sizes.before, *parts[1:], 0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 9), st.integers(0, 9), st.data())
def test_the_greatest_stage_reads_least_and_then_keeps_least(
    layers: list[int], before: int, after: int, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, len(layers)))
    sizes = LayerSizes(before=before, layers=layers, after=after)
    division = sizes.divide(stages)
    assert division in set(divisions(len(layers), stages))
    assert greatest(sizes, division) == min(greatest(sizes, d) for d in divisions(len(layers), stages))


def test_equal_layers_are_divided_evenly() -> None:
    assert LayerSizes(before=0, layers=[1] * 10, after=0).divide(4) == (2, 2, 3, 3)


def test_the_layers_of_each_stage() -> None:
    stages = [Stage(number, (2, 1, 3)) for number in range(3)]
    assert [list(stage.numbers(6)) for stage in stages] == [[0, 1], [2], [3, 4, 5]]
    assert [(stage.first, stage.last) for stage in stages] == [(True, False), (False, False), (False, True)]
    assert (Stage().first, Stage().last, Stage().count, Stage().numbers(6)) == (True, True, 1, range(6))
