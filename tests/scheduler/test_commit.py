"""Numbers of a result as Python floats, compared with the digits that numpy prints."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tgi.scheduler.commit import shortest

EDGES = [0.0, -0.0, 1.0, 0.1, 1e-13, 1e-20, 1e-45, 123456.79, 1e6, 16777216.0, 1e9, 3.4e38, np.inf, -np.inf]


def check(numbers: NDArray[np.float32]) -> None:
    assert shortest(numbers.tobytes()) == [float(str(number)) for number in numbers]


@pytest.mark.parametrize("exponent", range(-16, 10))
def test_numbers_get_the_fewest_digits_that_identify_them(exponent: int) -> None:
    rng = np.random.default_rng(exponent + 16)
    check((-rng.uniform(10.0**exponent, 10.0 ** (exponent + 1), 300)).astype(np.float32))
    power = np.float32(10.0**exponent)
    check(np.nextafter(np.repeat(power, 3), np.float32([0, power, np.inf])))


@pytest.mark.parametrize("edge", EDGES)
def test_numbers_that_are_special_get_them_too(edge: float) -> None:
    check(np.float32([edge, -1.5]))


def test_no_number_is_no_float() -> None:
    assert shortest(b"") == []
    assert str(shortest(np.float32([np.nan, -0.25]).tobytes())) == "[nan, -0.25]"
