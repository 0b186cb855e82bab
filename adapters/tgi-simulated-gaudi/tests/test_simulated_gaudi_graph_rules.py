"""Code that breaks each rule of graphs; README.md names these tests."""

import attrs
import pytest
import torch

from .simulated import graphed, hpu, refused, same, simulated


@pytest.fixture(params=["gaudi2-lazy", "gaudi3-compile"])
def card(request):
    with simulated(request.param) as made:
        yield made


def double(x):
    return x * 2


@pytest.mark.rule("S1")
def test_a_new_shape_after_warm_up_is_refused(card):
    function = graphed(card, double)
    function(hpu(1, 2))
    card.seal()
    function(hpu(3, 4))
    with refused("S1", "new graph"):
        function(hpu(1, 2, 3))


@pytest.mark.rule("S1")
def test_a_new_operation_outside_of_graphs_after_warm_up_is_refused(card):
    x = hpu(1, 2)
    (x + 1).cpu()
    card.seal()
    (x + 1).cpu()
    with refused("S1", "compiled after seal"):
        (x - 1).cpu()


@pytest.mark.rule("S2")
def test_a_scalar_argument_that_takes_a_second_value_is_refused(card):
    function = graphed(card, lambda x, n: x * n)
    function(hpu(1, 2), 3)
    function(hpu(1, 2), 3)
    with refused("S2", "is .*4.*, and was .*3"):
        function(hpu(1, 2), 4)


@pytest.mark.rule("S2")
def test_an_object_argument_counts_by_identity():
    @attrs.frozen
    class Metadata:
        x: torch.Tensor

    with simulated("gaudi2-lazy") as lazy:
        function = graphed(lazy, lambda metadata: metadata.x * 2)
        first, second = Metadata(hpu(1)), Metadata(hpu(1))
        function(first)
        with refused("S2", "Metadata"):
            function(second)


@pytest.mark.rule("S2")
def test_the_same_shape_with_another_dtype_is_refused(card):
    function = graphed(card, double)
    function(hpu(1, 2))
    with refused("S2", "dtypes"):
        function(hpu(1, 2, dtype=torch.bfloat16))


@pytest.mark.rule("S3")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.repeat_interleave(x, x.int()),
        lambda x: x.index_put_((x > 0,), x[0]),
        lambda x: x.unique(),
    ],
)
def test_a_shape_that_depends_on_data_is_refused_in_a_graph(card, function):
    x = hpu(1, 2)
    function(x.clone())
    assert card.ledger.counters["dynamic_shapes"] > 0
    with refused("S3"):
        graphed(card, lambda x: function(x.clone()))(x)


@pytest.mark.rule("S4")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.equal(x, x),
        lambda x: repr(x),
        lambda x: f"{x[0]:.2f}",
        lambda x: int(x[0]),
        lambda x: torch.empty(2).copy_(x),
        lambda x: x.to("cpu", non_blocking=True),
    ],
)
def test_a_value_read_on_the_host_is_refused_in_a_graph(card, function):
    x = hpu(1, 2)
    function(x)
    assert card.ledger.counters["d2h"] == 1
    with refused("S4", "host"):
        graphed(card, lambda x: function(x) is None or x)(x)


@pytest.mark.rule("S4")
def test_a_step_may_read_once(card):
    x = hpu(1, 2)
    with card.step():
        x.cpu()
    with refused("S4", "2 in one step, 1 allowed"), card.step():
        x.cpu()
        x.cpu()


@pytest.mark.rule("S5")
def test_a_branch_on_a_value_is_refused_in_a_graph(card):
    x = hpu(1, 2)
    with refused("S5"):
        graphed(card, lambda x: x * 2 if x.sum() > 0 else x)(x)


@pytest.mark.rule("S6")
def test_a_tensor_on_the_cpu_among_the_arguments_is_refused(card):
    x = hpu(1, 2)
    with refused("S6", "on the CPU"):
        x.index_select(0, torch.tensor([1]))
    with refused("S6", "copied from the host"):
        graphed(card, lambda x: x + torch.tensor([1.0, 2.0]).to("hpu"))(x)
    assert graphed(card, lambda x: x + torch.tensor(1.0).to("hpu"))(x).tolist() == [2, 3]


@pytest.mark.rule("S8")
def test_an_output_is_taken_away_by_the_next_replay():
    with simulated("gaudi2-lazy") as lazy:
        function = graphed(lazy, double)
        first = function(hpu(1, 2))
        view = first[:1]
        second = function(hpu(3, 4))
        assert second.tolist() == [6, 8]
        for stale in (first, view):
            with refused("S8", "after its next replay"):
                stale + 1


@pytest.mark.rule("S8")
def test_compiled_functions_give_new_tensors():
    with simulated("gaudi2-compile") as compiled:
        function = graphed(compiled, double)
        first, second = function(hpu(1, 2)), function(hpu(3, 4))
        assert (first.tolist(), second.tolist()) == ([2, 4], [6, 8])


@pytest.mark.rule("S9")
def test_an_input_that_is_kept_past_the_call_cannot_be_used(card):
    kept = []

    def keep(x):
        kept.append(x[:1])
        return x * 2

    graphed(card, keep)(hpu(1, 2))
    with refused("S9"):
        kept[0] + 1


@pytest.mark.rule("S10")
def test_python_runs_at_capture_only(card):
    calls = []

    def count(x):
        calls.append(1)
        return x + len(calls)

    function = graphed(card, count)
    assert [function(hpu(0, 0)).tolist() for _ in range(3)] == [[1, 1]] * 3
    assert calls == [1]


@pytest.mark.rule("S10")
def test_a_tensor_that_a_graph_computed_cannot_be_kept(card):
    table = []

    def cached(x):
        if not table:
            table.append(torch.arange(2, device=x.device) + 1)
        return x * table[0]

    function = graphed(card, cached)
    assert function(hpu(1, 2)).tolist() == [1, 4]
    assert function(hpu(3, 4)).tolist() == [3, 8]
    with refused("S10", "outside of it"):
        graphed(card, cached)(hpu(1, 2))


@pytest.mark.rule("S18")
def test_a_capture_or_a_replay_within_a_capture_is_refused():
    with simulated("gaudi2-lazy") as lazy:
        x = hpu(1, 2)
        inner = graphed(lazy, double)
        with refused("S18", "begins while function is captured"):
            graphed(lazy, inner)(x)
        inner(x)
        with refused("S18", "replayed while"):
            graphed(lazy, inner)(x)
        with refused("S18", "another stream"):
            graph = torch.hpu.HPUGraph()
            graph.capture_begin()
            torch.hpu.set_stream(torch.hpu.Stream())
            graph.capture_end()


@pytest.mark.rule("S21")
def test_a_part_of_a_kept_tensor_or_an_input_changed_in_a_graph_is_refused(card):
    kept = torch.zeros(4, device="hpu")
    x = hpu(1, 2)
    with refused("S21", "a part of a tensor from outside"):
        graphed(card, lambda x: kept[:2].add_(x))(x)
    with refused("S21", "a part of an input"):
        graphed(card, lambda x: x[:1].mul_(2))(x)
    with refused("S21", "changes an input"):
        graphed(card, lambda x: x.mul_(2))(x)
    places = hpu(0, 1, dtype=torch.int64)
    graphed(card, lambda x: kept.index_copy_(0, places, x))(x)
    graphed(card, lambda cache, x: cache.index_copy_(0, places + 2, x))(kept, x)
    assert kept.tolist() == [1, 2, 1, 2]


@pytest.mark.rule("S21")
def test_a_tensor_from_outside_changed_by_a_view_in_a_graph_is_refused(card):
    """However much of it the view shows, and whether the view was made before the capture."""
    kept = torch.zeros(2, 4, device="hpu")
    before = kept.view(-1)
    index, values = hpu(1, dtype=torch.int64), hpu(5.0)
    for view in (lambda: kept.view(-1), lambda: before, lambda: kept.unsqueeze(0)[0].flatten()):
        with refused("S21", "by a view of it, of shape"):
            graphed(card, lambda x, view=view: view().index_copy_(0, index, x))(values)
    flat = torch.zeros(8, device="hpu")
    graphed(card, lambda x: flat.detach().index_copy_(0, index, x) * 2)(values)
    assert flat.view(2, 4).cpu()[0, 1] == 5
    assert graphed(card, lambda x: flat.view(2, 4)[0] + x)(values).cpu().tolist() == [5, 10, 5, 5]


@pytest.mark.rule("S21")
@pytest.mark.parametrize(
    "change", [lambda x: x.add_(1), lambda x: x.copy_(torch.ones(2))], ids=["by it", "from host"]
)
def test_a_tensor_of_a_lazy_graph_is_not_changed_by_a_view_of_it(card, change):
    """The bridge writes the whole tensor elsewhere then, and the graph keeps reading what was."""
    kept = torch.zeros(4, device="hpu")
    change(kept[:2])
    replay, x = graphed(card, lambda x: kept[:2] + x), hpu(1, 2)
    replay(x)
    change(x[:])  # an input may be another tensor at each replay
    if card.lazy:
        with refused("S21", "a tensor that a graph uses by a view of it"):
            change(kept[2:])
    else:
        change(kept[2:])
    kept.index_copy_(0, hpu(0, 1, dtype=torch.int64), hpu(5, 6))
    assert replay(x).tolist() == [5 + x.tolist()[0], 6 + x.tolist()[1]]


@pytest.mark.rule("S24")
def test_random_numbers_are_refused_in_a_graph(card):
    x = hpu(1, 2)
    torch.rand_like(x)
    assert card.ledger.counters["random"] == 1
    for function in (torch.rand_like, lambda x: x.clone().exponential_(), lambda x: x.multinomial(1)):
        with refused("S24"):
            graphed(card, function)(x)


@pytest.mark.rule("S29")
def test_a_bit_cast_is_refused_in_a_graph(card):
    with refused("S29", "the bits of torch.int32 are read as torch.float32"):
        graphed(card, lambda x: x.view(torch.float32) * 2)(hpu(1, dtype=torch.int32))
    outside = hpu(1.0).view(torch.int32)
    assert (outside.view(torch.float32).cpu().tolist(), outside.cpu().tolist()) == ([1.0], [0x3F800000])


@pytest.mark.rule("S31")
def test_a_tensor_without_elements_is_refused_in_a_graph(card):
    def joined(x):
        return torch.cat((x[:, None], x.new_empty(2, 0)), 1)

    with refused("S31", r"a tensor of shape \(2, 0\) has no elements"):
        graphed(card, joined)(hpu(1.0, 2.0))
    with refused("S31", r"a tensor of shape \(0,\) has no elements"):
        graphed(card, lambda x: x[:0].int())(hpu(1.0, 2.0))
    assert joined(hpu(1.0, 2.0)).cpu().tolist() == [[1.0], [2.0]]
    assert graphed(card, lambda x: (x * 2, x.new_empty(2, 0))[0])(hpu(1.0, 2.0)).cpu().tolist() == [2.0, 4.0]


class Scaled(torch.nn.Module):
    def __init__(self, number):
        super().__init__()
        self.weight, self.number = hpu(number, number + 1), number

    def forward(self, x):
        return x * self.weight


class Numbered(Scaled):
    """A layer that looks up what it works with by its number."""

    def __init__(self, number, weights):
        super().__init__(number)
        self.weights = weights

    def forward(self, x):
        return x * self.weights[self.number]


@pytest.mark.rule("S30")
def test_a_function_for_each_of_many_equal_layers_is_refused():
    with simulated("gaudi2-compile") as card:
        shared = graphed(card, lambda layer, x: type(layer).forward(layer, x))
        layers = [Scaled(1.0) for _ in range(5)]
        for number, layer in enumerate(layers):
            layer.weight = hpu(number, number + 1)
            same(shared(layer, hpu(1, 2)), torch.tensor([number, 2.0 * number + 2]))
        assert card.ledger.counters["graphs"] == 1
        weights = [layer.weight for layer in layers]
        with refused("S30", "4 functions"):
            for number in range(5):
                graphed(card, Numbered(number, weights).forward)(hpu(1, 2))
