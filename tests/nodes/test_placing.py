"""Places of ranks in a cluster, what each is told of its own, and what is said if there is no room."""

import subprocess
import sys

import pytest

from tgi.config import OptionError, Options
from tgi.nodes.actor import _Rank, interface_of
from tgi.nodes.driver import bundle_sizes, seat_ranks, shortage, source_address
from tgi.nodes.messages import Place, Seat, Task
from tgi.planning.setup import count_shards
from tgi.plugins import devices, load_plugins

CARD = {"CPU": 1.0, "HPU": 1.0}


def nodes(*cards: int) -> list[dict[str, object]]:
    return [
        {"NodeManagerAddress": f"10.0.0.{index}", "Resources": {"CPU": 32.0, "HPU": float(count)}}
        for index, count in enumerate(cards, 1)
    ]


@pytest.mark.parametrize(
    ("ranks", "cards", "sizes"),
    [
        (8, (8, 8), [8, 4, 2, 1]),
        (16, (8, 8), [8, 4, 2, 1]),
        (8, (6, 6), [4, 2, 1]),
        (8, (6, 2), [2, 1]),
        (2, (1, 1), [1]),
        (3, (1, 1), []),
        (6, (4, 4), [3, 2, 1]),
    ],
)
def test_a_node_gets_as_many_ranks_as_it_can_hold(
    ranks: int, cards: tuple[int, ...], sizes: list[int]
) -> None:
    assert list(bundle_sizes(ranks, CARD, nodes(*cards))) == sizes


def test_a_rank_knows_its_place_on_its_node() -> None:
    seats = list(seat_ranks(["a", "a", "b"]))
    assert seats == [Seat(0, 3, "a", 0, 2), Seat(1, 3, "a", 1, 2), Seat(2, 3, "b", 0, 1)]


def test_a_shortage_names_what_was_asked_and_what_is_there() -> None:
    place = Place("auto", 16, CARD, 0.0)
    assert shortage(place, nodes(8, 4), {"CPU": 60.0, "HPU": 3.0}) == (
        "16 ranks ask for 16 CPU, 16 HPU, and the Ray cluster has 60 CPU free of 64, 3 HPU free of 12 "
        "(10.0.0.1 has 32 CPU, 8 HPU; 10.0.0.2 has 32 CPU, 4 HPU)"
    )
    bare = [{"NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 4.0}}]
    assert shortage(Place("auto", 1, CARD, 0.0), bare, {"CPU": 4.0}) == (
        "1 rank asks for 1 CPU, 1 HPU, and the Ray cluster has 4 CPU free of 4, 0 HPU free of 0 "
        "(no node has CPU and HPU)"
    )


@pytest.mark.parametrize(
    ("variables", "card"),
    [({}, "3"), ({"CARDS": "5"}, "0"), ({"CARDS": "4,5,6,7"}, "3"), ({"CARDS": "all"}, "3")],
)
def test_variables_of_a_rank(variables: dict[str, str], card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that is shown one card alone sees that as its first; the node's variables prevail."""
    for name, value in {**variables, "ON_NODE": "node", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    given = {"ON_NODE": "server", "GIVEN": "server"}
    task = Task("", 0, b"", "", None, None, "auto", given, ("CARDS",), ("CARD_INTERFACE",))
    found = _Rank(task, Seat(11, 16, "127.0.0.1", 3, 8))._environment()
    places = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": card, "LOCAL_WORLD_SIZE": "8"}
    expected = {**places, "ON_NODE": "node", "GIVEN": "server"}
    assert {name: found[name] for name in expected} == expected
    assert found["GLOO_SOCKET_IFNAME"] == found["CARD_INTERFACE"] == interface_of("127.0.0.1")
    assert "OMP_NUM_THREADS" not in found


def test_the_way_to_another_machine_has_an_address_of_this_one() -> None:
    assert source_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("192.0.2.255") is None


def test_cards_of_this_machine_are_not_counted_where_ranks_are_on_others() -> None:
    device = devices(load_plugins())["hpu"]
    variables = {"HABANA_VISIBLE_MODULES": "0,1"}
    assert count_shards(Options(executor="ray", num_shard=16), device, variables) == 16
    with pytest.raises(OptionError, match="--executor ray needs --num-shard"):
        count_shards(Options(executor="ray", sharded="true"), device, variables)


def test_the_server_imports_no_ray() -> None:
    code = "import sys, tgi.cli, tgi.server, tgi.nodes.driver, tgi.nodes.actor; print('ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
