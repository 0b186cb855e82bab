"""Which rank differs from the others, and which is late."""

import pytest

from tgi.agreement import Agreement, Patience

ONE, TWO = b"one", b"two"


def agreement(ranks: int = 2) -> Agreement:
    """Return an agreement about two steps on the way, sent at 0 and 1."""
    made = Agreement(ranks, Patience(lag=10, step=100))
    made.sent(1, ONE, 0)
    made.sent(2, TWO, 1)
    return made


def test_ranks_that_do_the_same_in_their_own_time() -> None:
    made = agreement(3)
    for rank, now in ((0, 1), (2, 2), (1, 9)):
        assert made.begun(rank, ONE, now) is None
    assert made.finished(2, b"a", 3) is None
    assert made.begun(2, TWO, 4) is None
    assert made.finished(0, b"a", 10) is None
    assert made.finished(1, b"a", 12) is None
    for rank in (1, 0):
        assert made.begun(rank, TWO, 13) is None
    for rank in (0, 1, 2):
        assert made.finished(rank, b"b", 14) is None
    assert made.overdue(1e9) is None, "nothing is on the way"


def test_another_step_than_was_sent() -> None:
    made = agreement()
    assert made.begun(0, ONE, 1) is None
    assert made.begun(1, TWO, 1) == "ranks disagree: rank 1 has got another step 1 than was sent"
    made = agreement()
    made.begun(1, ONE, 1)
    assert made.begun(1, ONE, 2) == "ranks disagree: rank 1 has got another step 2 than was sent"


@pytest.mark.parametrize("first", [0, 1])
def test_other_tokens(first: int) -> None:
    made = agreement()
    for rank in (0, 1):
        made.begun(rank, ONE, 1)
        made.begun(rank, TWO, 2)
    assert made.finished(first, b"a", 3) is None
    assert made.finished(first, b"b", 4) is None
    assert made.finished(1 - first, b"a", 5) is None
    complaint = made.finished(1 - first, b"c", 6)
    assert complaint == "ranks disagree: step 2 gave other tokens on rank 1 than on rank 0"


def test_what_was_not_asked_for() -> None:
    made = agreement()
    assert made.finished(1, b"a", 1) == "rank 1 has finished a step that it has not begun"
    for digest in (ONE, TWO):
        made.begun(1, digest, 1)
    assert made.begun(1, ONE, 1) == "rank 1 begins with a step that it was not given"


def test_who_does_not_keep_up_with_another() -> None:
    made = agreement(3)
    assert made.overdue(99) is None
    made.begun(0, ONE, 50)
    assert made.overdue(60) is None
    late = "ranks 1, 2 have not begun with step 1, which rank 0 has begun with more than 10 s ago"
    assert made.overdue(61) == late
    for rank in (1, 2):
        made.begun(rank, ONE, 62)
    assert made.overdue(99) is None
    for rank in (0, 2):
        made.finished(rank, b"a", 90)
    assert made.overdue(100) is None
    late = "rank 1 has not finished step 1, which ranks 0, 2 have finished more than 10 s ago"
    assert made.overdue(101) == late


def test_a_step_that_nobody_finishes() -> None:
    made = agreement()
    assert made.overdue(100) is None
    assert made.overdue(101) == "no rank has finished step 1 within 100 s"
    for rank in (0, 1):
        made.begun(rank, ONE, 1)
        made.finished(rank, b"a", 200)
    assert made.overdue(300) is None, "the time of the second step is its own"
    assert made.overdue(301) == "no rank has finished step 2 within 100 s"


def test_there_is_more_time_until_the_warm_up_has_ended() -> None:
    made = Agreement(2, Patience(lag=10, step=100, compiling=1000))
    made.sent(0, ONE, 0)
    assert made.overdue(1100) is None
    assert made.overdue(1101) == "no rank has finished a step of the warm-up within 1100 s"
    made.begun(1, ONE, 1)
    assert made.overdue(1011) is None
    late = "rank 0 has not begun with a step of the warm-up, which rank 1 has begun with more than 1010 s ago"
    assert made.overdue(1012) == late
    made.settle()
    assert made.overdue(11) is None
    assert made.overdue(12) == late.replace("1010", "10")


def test_nobody_is_late_for_the_time_in_which_the_server_stood_still() -> None:
    made = agreement()
    made.begun(0, ONE, 1)
    made.stood_still(500)
    assert made.overdue(511) is None
    assert "rank 1 has not begun with step 1" in str(made.overdue(512))
    made.begun(1, ONE, 512)
    made.stood_still(500)
    assert made.overdue(1100) is None
    assert "no rank has finished step 1 within 100 s" in str(made.overdue(1101))
