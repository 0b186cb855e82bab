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
