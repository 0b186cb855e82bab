"""Random programs: the memory of a graph's intermediate results is shared, and no result suffers from it."""

import random

import pytest
import torch

from .simulated import graphed, numbers, same, simulated


@pytest.fixture(params=["gaudi2-lazy", "gaudi3-compile"])
def card(request):
    with simulated(request.param) as made:
        yield made


UNARY = [
    torch.relu,
    torch.neg,
    torch.sigmoid,
    lambda x: x + 1,
    lambda x: x.softmax(-1),
    lambda x: x.cumsum(-1),
    lambda x: x.sort(-1).values,
    lambda x: x.topk(4, -1).values.repeat(1, 2),
    lambda x: x.t().contiguous().view(8, 8),
    lambda x: x.view(2, 4, 8).transpose(0, 1).reshape(8, 8),
    lambda x: x.flip(0),
    lambda x: x[2:6].repeat(2, 1),
    lambda x: x.argmax(-1).float()[:, None].expand(8, 8) * 0.1,
    lambda x: x.clone().mul_(0.5),
    lambda x: torch.cat([x.chunk(2)[1], x[:4]]),
]
BINARY = [
    torch.add,
    torch.maximum,
    lambda x, y: (x @ y).tanh(),
    lambda x, y: torch.where(x > y, x, y * 0.5),
    lambda x, y: x.clone().index_copy_(0, y.argsort(-1)[0], y),
    lambda x, y: x.clone().scatter_add_(1, y.argsort(-1), y).tanh(),
    lambda x, y: torch.stack([x, y]).mean(0),
    lambda x, y: x.add_(y, alpha=0.1),
]


def program(seed):
    """A random function of [8, 8] that branches, joins, changes in place what is its own, and returns two."""
    choice = random.Random(seed)
    plan = [
        (choice.choice(UNARY), choice.choice(BINARY), choice.random(), choice.random()) for _ in range(12)
    ]

    def run(x):
        values = [x * 1]
        for unary, binary, one, other in plan:
            made = binary(values[int(one * len(values))], values[int(other * len(values))])
            values.append(unary(made))
        return values[-1], values[len(values) // 2][:3]

    return run


def test_random_programs_give_what_they_give_on_the_cpu_while_their_graphs_take_turns(card):
    functions = [program(seed) for seed in range(30)]
    replays = [graphed(card, function) for function in functions]
    for turn in range(3):
        for seed, (function, replay) in enumerate(zip(functions, replays, strict=True)):
            x = numbers(8, 8, seed=seed + 100 * turn)
            same(replay(x.to("hpu")), function(x))
    assert card.ledger.counters["replays"] == 60
