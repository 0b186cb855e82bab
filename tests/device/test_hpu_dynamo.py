"""The Gaudi's code through torch's own tracer, on a CPU, with plain functions for the bridge's kernels.

The simulated card does not simulate Dynamo; here nothing else is simulated.
"""

import contextlib
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import attrs
import pytest
import torch
import torch.distributed as dist
import transformers
from torch.testing._internal.distributed.fake_pg import FakeStore

from tgi.device.base import Device
from tgi.device.hpu import hpu_device
from tgi.device.hpu.bridge import Bridge, join_ranks
from tgi.device.hpu.compiled_regions import CompiledRegions
from tgi.device.hpu.hpu_device import HpuDevice
from tgi.testing.driver import Driver, load_command
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt
from tgi.weights import Shard
from tgi.worker.runner import Runner

PROMPT = random_prompt(500, 20, 0)
ALONE = Shard()


class Stream:
    """Does its work at once."""

    def wait_event(self, event):
        pass

    wait_stream = wait_event


class Event:
    def record(self):
        pass

    synchronize = record


def attention(query, key, value, mask, dropout, causal, scale, mode, recompute, lengths, side):
    """FusedSDPA, for prompts that are padded at their right."""
    del dropout, mode, recompute, lengths, side
    heads = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    scores = query @ key.transpose(2, 3) * scale
    if causal:
        rows, columns = scores.shape[-2:]
        hidden = torch.arange(columns) > torch.arange(rows)[:, None]
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores if mask is None else scores + mask).softmax(-1) @ value


def rotary(x, cos, sin, positions, offset, mode):
    del positions, offset, mode
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def open_plain_bridge(environ):
    del environ
    stream = Stream()
    hpu = SimpleNamespace(
        Stream=Stream,
        Event=Event,
        current_stream=lambda: stream,
        stream=lambda stream: contextlib.nullcontext(stream),
        synchronize=lambda: None,
        mem_get_info=lambda: (1 << 34, 1 << 34),
        memory_allocated=lambda: 0,
    )
    given = {
        "lazy": False,
        "fp8_limit": 240.0,
        "hpu": hpu,
        "mark_step": lambda: None,
        "attention": attention,
        "rms_norm": lambda x, weight, epsilon: Device.rms_norm(None, x, weight, epsilon),
        "rotary": rotary,
    }
    return Bridge(**{field.name: given.get(field.name) for field in attrs.fields(Bridge)})


class Traced(HpuDevice):
    """A Gaudi whose regions are traced in full, and then run as they are."""

    def __init__(self):
        self.traces = 0
        super().__init__(1, {})
        self.torch_device = torch.device("cpu")

        def count(graph, inputs):
            del inputs
            self.traces += 1
            self.look(graph)
            return graph.forward

        self.graphs = CompiledRegions(
            lambda region: torch.compile(region, backend=count, dynamic=False, fullgraph=True)
        )

    def look(self, graph):
        """Look at the calls in a graph."""


@pytest.fixture(autouse=True)
def bridge(monkeypatch):
    monkeypatch.setattr(hpu_device, "open_bridge", open_plain_bridge)


def run(folder, device, shard=ALONE, short=False):
    """Tokens of two sequences, and how many traces there were after each step."""
    driver = Driver(Runner.load(load_command(folder), shard, device))
    tokens, traces = [], []

    def note(answers):
        tokens.extend((lane, answer.token) for lane, answer in answers.items())
        traces.append(getattr(device, "traces", 0))

    for lane in range(1 if short else 2):
        driver.start(lane, sample=bool(lane), top_p=0.9, seed=lane)
        targets = {lane: [*PROMPT[1:], -1]}
        note(driver.prefill({lane: PROMPT}, targets=targets, pad=(0, 12, 0), least_sampler=1))
    if short:
        note(driver.decode([0]))
        return tokens, traces
    note(driver.decode([0, 1], least_sampler=2))
    driver.runner.seal()
    for _ in range(2):
        note(driver.decode([1, 0], least_sampler=2))
    note(driver.decode([0, 1], pad=(0, 0, 3), least_sampler=2))
    torch.compiler.set_stance("default")
    return tokens, traces


@pytest.mark.parametrize("layers", [2, 32])
def test_traces_of_a_bucket_do_not_depend_on_the_number_of_layers(tmp_path, layers):
    """Nor do other rows, lanes or tokens need any, and nothing breaks a graph."""
    make_llama(tmp_path, vocab_size=500, num_hidden_layers=layers)
    with torch._dynamo.config.patch(error_on_recompile=True):
        tokens, traces = run(tmp_path, Traced())
    assert tokens == run(tmp_path, Device(1))[0]
    start = 2  # what a sequence brings, and a question about the prompt
    prefill = decode = 8  # unpack, embed, rotate, a layer, normalise, head, keep; sample
    same_rows = 2  # unpack, and a layer; all else does not depend on blocks
    assert traces == [start + prefill] * 2 + [start + prefill + decode] * 3 + [
        start + prefill + decode + same_rows
    ]


class Config:
    """Settings of torch 2.6, which the oldest releases with this engine have."""

    __slots__ = ("accumulated_cache_size_limit", "cache_size_limit")


def test_limits_of_recompiling_have_names_that_every_torch_knows(monkeypatch):
    CompiledRegions().prepare(torch.nn.Module())
    assert torch._dynamo.config.recompile_limit == torch._dynamo.config.accumulated_recompile_limit > 1000
    monkeypatch.setattr(torch._dynamo, "config", Config())
    CompiledRegions().prepare(torch.nn.Module())


def test_a_step_is_read_by_numbers_and_not_by_truth_values(tmp_path):
    """Torch 2.11 cannot trace an index that is a bool."""
    make_llama(tmp_path, vocab_size=500)
    driver = Driver(Runner.load(load_command(tmp_path), ALONE, Device(1)))
    driver.start(0)
    driver.prefill({0: PROMPT})
    layouts = [made.layout for made in driver.runner.programs._compiled.values()]
    assert len(layouts) == 2
    assert {type(kind) for layout in layouts for kind, _, _ in layout.places.values()} == {int}


SMALL = {
    "vocab_size": 500,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
MODELS = {
    "windows in every other layer": lambda layers: transformers.Gemma2Config(
        num_hidden_layers=layers, num_key_value_heads=2, head_dim=12, sliding_window=8, **SMALL
    ),
    "by way of transformers": lambda layers: transformers.OPTConfig(
        num_hidden_layers=layers,
        ffn_dim=64,
        word_embed_proj_dim=48,
        vocab_size=500,
        hidden_size=48,
        num_attention_heads=4,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_kind_of_layer_is_traced_once(tmp_path, name):
    found = {}
    for layers in (2, 4):
        folder = tmp_path / str(layers)
        config = MODELS[name](layers)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokens, found[layers] = run(folder, Traced(), short=True)
        assert tokens == run(folder, Device(1), short=True)[0]
    assert found[2] == found[4]


@pytest.fixture
def hccl(monkeypatch):
    """The bridge's module for ranks, which keeps every collective out of graphs when it is imported."""
    name, collectives = "habana_frameworks.torch.distributed.hccl", (dist.all_reduce, dist.all_gather)
    for end in [place for place, letter in enumerate(f"{name}.") if letter == "."]:
        monkeypatch.setitem(sys.modules, name[:end], ModuleType(name[:end]))
    for collective in collectives:
        torch._dynamo.decorators._disallow_in_graph_helper(False)(collective)
    yield
    for collective in collectives:
        torch._dynamo.trace_rules._disallowed_callable_ids.remove(id(collective))


@pytest.mark.usefixtures("hccl")
def test_collectives_are_part_of_the_traces(tmp_path):
    """Of one rank of two; torch's fake collectives leave tensors as they are."""
    join_ranks()
    make_llama(tmp_path, vocab_size=500)
    calls = Counter()

    class Rank(Traced):
        def look(self, graph):
            calls.update(node.target.__name__ for node in graph.graph.nodes if node.op == "call_function")

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            run(tmp_path, Rank(), Shard(0, 2))
    finally:
        dist.destroy_process_group()
    shapes = 3  # of which two have as many rows
    assert calls["all_reduce"] == (shapes - 1) + shapes * 2  # after the embedding, and twice in a layer
    assert (
        calls["all_gather_into_tensor"] == (shapes - 1) + 1
    )  # in the head, and for a question about the prompt
