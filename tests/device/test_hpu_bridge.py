"""Variables that are set before Gaudi's bridge is imported."""

import pytest

from tgi.device.hpu.bridge import settle_card


@pytest.mark.parametrize(
    ("environ", "card"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "1"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1", "HABANA_VISIBLE_MODULES": "all", "HLS_MODULE_ID": "5"}, "1"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1", "HABANA_VISIBLE_MODULES": "4,6"}, "6"),
    ],
)
def test_each_rank_has_a_card_of_its_own(environ, card):
    settle_card(environ)
    assert environ.get("HLS_MODULE_ID") == card


@pytest.mark.parametrize("value", ["all", ""])
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_the_bridge_finds_no_word_in_the_place_of_a_list_of_cards(ranks, value):
    """It makes a number of each entry of the variable, and takes every card without it."""
    environ = {"WORLD_SIZE": ranks, "LOCAL_RANK": "1", "HABANA_VISIBLE_MODULES": value}
    settle_card(environ)
    assert "HABANA_VISIBLE_MODULES" not in environ
    assert environ.get("HLS_MODULE_ID") == (None if ranks == "1" else "1")
