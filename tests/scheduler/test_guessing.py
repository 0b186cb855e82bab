"""Guesses of the tokens that follow, looked up in what there is."""

from tgi.scheduler.guessing import MAX_PAUSE, Guesser


def test_what_followed_the_last_occurrence_is_guessed() -> None:
    guesser = Guesser(3)
    assert guesser.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3]) == [4, 5, 6]
    assert guesser.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 8]) == []
    assert guesser.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 8, 9, 1, 2, 3]) == [8, 9, 1]


def test_a_short_period_goes_on() -> None:
    assert Guesser(7).guess([9, 1, 2, 1, 2, 1, 2]) == [1, 2, 1, 2, 1, 2, 1]
    assert Guesser(4).guess([0, 0, 0, 0]) == [0, 0, 0, 0]


def test_short_texts() -> None:
    for length in range(4):
        assert Guesser(5).guess(list(range(length))) == []


def test_guesses_follow_what_was_right() -> None:
    guesser, tokens = Guesser(8), [*range(20), 0, 1, 2]
    assert len(guesser.guess(tokens)) == 8
    guesser.learn(len(tokens), 8, 3)
    assert len(guesser.guess(tokens)) == 3
    guesser.learn(len(tokens), 3, 3)
    assert len(guesser.guess(tokens)) == 6
    guesser.learn(len(tokens), 6, 6)
    assert len(guesser.guess(tokens)) == 8


def test_there_is_a_longer_pause_after_each_wrong_guess() -> None:
    guesser, tokens, pauses = Guesser(4), [1] * 10, []
    for _ in range(8):
        assert guesser.guess(tokens)
        guesser.learn(len(tokens), 1, 0)
        before = len(tokens)
        while not guesser.guess(tokens):
            tokens.append(1)
        pauses.append(len(tokens) - before)
    assert pauses[:3] == [2, 4, 8]
    assert pauses[-1] == MAX_PAUSE
    guesser.learn(len(tokens), 1, 1)
    assert guesser.guess(tokens)
