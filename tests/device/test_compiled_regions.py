"""Compiled regions, by torch's own compiler, which the simulated card does not simulate."""

import pytest
import torch

from tgi.device.base import Device
from tgi.device.hpu.compiled_regions import CompiledRegions
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt

PROMPT = random_prompt(500, 20, 0)


class Compiled(Device):
    """Plain torch whose programs are compiled by a back end that only counts."""

    def __init__(self):
        super().__init__(1)
        self.compilations = 0
        self.graphs = CompiledRegions(
            lambda region: torch.compile(region, backend=self.compile, dynamic=False, fullgraph=True)
        )

    def compile(self, graph, inputs):  # noqa: ARG002
        self.compilations += 1
        return graph.forward

    def prepare(self, model):
        self.graphs.prepare(model)

    def graph(self, program):
        return self.graphs.graph(program)


def run(folder, device, params):
    driver = make_driver(folder, device)
    tokens, compilations = [], []
    for lane in range(2):
        driver.start(lane, **params)
        targets = {lane: [*PROMPT[1:], -1]}
        tokens.append(driver.prefill({lane: PROMPT}, targets=targets, top=2)[lane].token)
        compilations.append(getattr(device, "compilations", 0))
    for step in range(6):
        answers = driver.decode([0, 1] if step % 2 else [1, 0])
        tokens += [answers[lane].token for lane in (0, 1)]
        compilations.append(getattr(device, "compilations", 0))
    return tokens, compilations


@pytest.mark.parametrize(
    "params",
    [{}, {"sample": True, "top_p": 0.9, "typical_p": 0.9, "repetition_penalty": 1.2, "history": PROMPT}],
    ids=["greedy", "drawn"],
)
def test_each_region_of_a_bucket_is_compiled_once(tmp_path, params):
    """Without a break in any, although layers differ in their numbers and steps in their lanes and draws."""
    folder = make_llama(tmp_path, vocab_size=500, num_hidden_layers=3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        tokens, compilations = run(folder, Compiled(), params)
    assert tokens == run(folder, Device(1), params)[0]
    start = 2  # answers about the prompt, and a lane's bias
    regions = 3 + 3 + 4  # unpack, keep and the sampler; the layers; embedding, rotary, norm, head
    assert compilations == [start + regions] * 2 + [start + 2 * regions] * 6
