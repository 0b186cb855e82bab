"""The real rank process over its socket: a whole life, and every way it can fail to begin."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tgi_simulated_gaudi.device import card_environment

from tests.rank_processes import on_ranks, open_ranks
from tgi.protocol import (
    Allocate,
    Allocated,
    Bucket,
    Failed,
    Loaded,
    Result,
    Step,
    ints,
    unpack_floats,
    unpack_ints,
)
from tgi.testing.driver import lane_params, load_command
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt, transformers_logprobs

CARD = "gaudi2-lazy"
PROMPT = [0, 58, 346, 270, 388, 341, 224, 47, 293, 298, 34]
COUNT = 20


def first_step(lanes, blocks, **changed):
    columns = {
        "number": 1,
        "bucket": Bucket(len(lanes), 16, 4, prefill=True),
        "lanes": ints(lanes),
        "starts": ints([0] * len(lanes)),
        "lengths": ints([len(PROMPT)] * len(lanes)),
        "samples": ints([1] * len(lanes)),
        "draws": ints([0] * len(lanes)),
        "tokens": ints(PROMPT * len(lanes)),
        "table_lanes": ints(lanes),
        "table_starts": ints([0] * len(lanes)),
        "table_counts": ints([2] * len(lanes)),
        "table_blocks": ints(blocks),
        "params": tuple(lane_params(lane, prompt_length=len(PROMPT)) for lane in lanes),
    }
    return Step(**{**columns, **changed})


def decode_step(number, lanes):
    return Step(
        number=number,
        bucket=Bucket(4, 1, 4),
        lanes=ints(lanes),
        starts=ints([len(PROMPT) + number - 2] * len(lanes)),
        lengths=ints([1] * len(lanes)),
        samples=ints([1] * len(lanes)),
        draws=ints([number - 1] * len(lanes)),
        tokens=ints([-1] * len(lanes)),
    )


def test_greedy_is_transformers_generate_with_every_step_sent_ahead(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = make_llama(tmp_path, head_dim=24, attention_bias=True)
    with open_ranks(1) as (send, reports):
        send(load_command(folder))
        loaded = next(reports)
        assert isinstance(loaded, Loaded)
        assert loaded.dtype == "float32"
        assert loaded.block_bytes == (
            2 * 2 * 16 * 2 * 24 * 4,
        )  # keys and values, layers, tokens, heads, size, bytes
        assert loaded.free_bytes > 0
        send(Allocate((16,)))
        targets = [*PROMPT[1:], -1, *PROMPT[1:], -1]
        send(first_step([2, 0], [5, 3, 9, 1], targets=ints(targets), top=2))
        grown = {
            "table_lanes": ints([0]),
            "table_starts": ints([2]),
            "table_counts": ints([1]),
            "table_blocks": ints([12]),
        }
        for number in range(2, COUNT + 1):
            order = [0, 2] if number % 2 else [2, 0]
            step = decode_step(number, order)
            if number == 3:  # nobody needs it yet
                step = Step(**{**{name: getattr(step, name) for name in step.__struct_fields__}, **grown})
            send(step)
        assert isinstance(next(reports), Allocated)
        results = [next(reports) for _ in range(COUNT)]
    assert all(isinstance(result, Result) for result in results)
    assert [result.number for result in results] == list(range(1, COUNT + 1))
    tokens = [unpack_ints(result.tokens).tolist() for result in results]
    assert all(first == second for first, second in tokens)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=COUNT,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0]
    assert [first for first, _ in tokens] == wanted[len(PROMPT) :].tolist()
    with torch.inference_mode():
        logprobs = model(wanted[None]).logits[0].log_softmax(-1)
    prompt = torch.tensor(unpack_floats(results[0].prompt_logprobs)).view(2, len(PROMPT) - 1)
    expected = logprobs[: len(PROMPT) - 1].gather(1, wanted[1 : len(PROMPT), None])[:, 0]
    for row in prompt:
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
    got = torch.tensor([unpack_floats(result.logprobs)[0] for result in results])
    expected = logprobs[len(PROMPT) - 1 : -1].gather(1, wanted[len(PROMPT) :, None])[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    best = logprobs[len(PROMPT) - 1].topk(2)
    assert unpack_ints(results[0].top_tokens).tolist() == best.indices.tolist() * 2
    torch.testing.assert_close(
        torch.tensor(unpack_floats(results[0].top_logprobs)), best.values.repeat(2), atol=1e-4, rtol=0
    )


def edit_config(folder, **changed):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def edit_tensors(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


BROKEN = {
    "missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop("lm_head.weight")),
        "no tensor 'lm_head.weight'",
    ),
    "unread tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({"model.layers.1.x": torch.ones(1)})),
        "no layer of this model reads: 'model.layers.1.x'",
    ),
    "truncated file": (truncate, "model.safetensors is not a complete"),
    "wrong shape": (
        lambda f: edit_config(f, intermediate_size=100),
        "'model.layers.0.mlp.gate_proj.weight' has shape",
    ),
    "unsupported RoPE": (
        lambda f: edit_config(f, rope_scaling={"type": "axial"}),
        "'axial' is not supported",
    ),
    "no config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_with_a_checkpoint_is_said_in_one_line(tmp_path, spoil, message, capfd):
    folder = make_llama(tmp_path)
    command = load_command(folder)
    spoil(folder)
    with open_ranks(1) as (send, reports):
        send(command)
        failed = next(reports)
        assert next(reports, None) is None
    assert isinstance(failed, Failed)
    assert failed.kind == "model"
    assert message in failed.message
    assert "\n" not in failed.message
    assert capfd.readouterr().err == ""


def test_rank_processes_on_simulated_cards_give_the_distribution_of_transformers(tmp_path):
    folder = make_llama(tmp_path, shards=3, attention_bias=True, mlp_bias=True, vocab_size=511)
    prompt = random_prompt(511, 20, 0)
    (got,) = on_ranks(folder, 2, [prompt], 511, "hpu-sim", card_environment(CARD))
    (wanted,) = transformers_logprobs(folder, None, [prompt])
    assert (got - wanted[-1]).abs().max() < 1e-4
