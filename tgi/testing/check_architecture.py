"""The whole test of a model package: `check_architecture(folder)` on a small float32 checkpoint.

Everything is compared as log-probabilities of the whole vocabulary, with one bound for all.
"""

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from tgi.device import Device
from tgi.device.cpu import CpuDevice
from tgi.protocol import (
    Allocate,
    Allocated,
    Command,
    FrameReader,
    Loaded,
    Progress,
    Report,
    Result,
    Step,
    decode_report,
    encode,
    frame,
    ints,
    unpack_floats,
    unpack_ints,
)
from tgi.weights import Shard
from tgi.worker.runner import Runner

from .driver import BLOCK_SIZE, Driver, lane_params, load_command, make_driver
from .simulated_hpu import card_environment, open_compiling

R = TypeVar("R", Loaded, Allocated, Result)

Logprobs = torch.Tensor
"""[tokens, vocab] float32: after the last prompt token and after each generated one."""

LENGTHS = (37, 5, 18)
"""Tokens in the prompts that are tried."""
DECODED = 6
"""Tokens generated after each."""


def check_architecture(
    folder: Path | str,
    *,
    tolerance: float = 1e-4,
    ranks: int = 2,
    lengths: Sequence[int] = LENGTHS,
    reference: Any = None,
    cards: Sequence[str] = ("gaudi2-lazy", "gaudi3-compile"),
) -> None:
    """Raise AssertionError where the model is not right.

    Against transformers (`reference`, or the model that it loads from the folder); decode against prefill;
    chunked against whole; a shared prefix against none; padded against unpadded; shuffled against ordered
    rows; scattered against consecutive blocks; the CPU's operations, plain torch and simulated `cards`, whose
    steps are graphs, against one another; `ranks` ranks against one (0: leave out); the memory that its
    weights take against what `tgi plan` expects. That every tensor of the checkpoint is read, loading checks.
    """
    folder = Path(folder)
    fast = CpuDevice(1)
    vocab = make_driver(folder, fast).runner.config.vocab_size
    prompts = [random_prompt(vocab, length, seed) for seed, length in enumerate(lengths)]
    texts = [prompt + generate(folder, fast, prompt) for prompt in prompts]
    wanted = [
        whole(make_driver(folder, fast), text, len(prompt))
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    compare("transformers", transformers_logprobs(folder, reference, texts, lengths), wanted, tolerance)
    cases = list(zip(texts, lengths, wanted, strict=True))
    for device in (fast, Device(1)):
        check_device(folder, device, type(device).__name__, cases, tolerance)
    for card in cards:
        with open_compiling(card) as simulated:
            check_device(folder, simulated, card, cases, tolerance)
    if ranks:
        got = on_ranks(folder, ranks, prompts, vocab)
        compare(f"{ranks} ranks", got, [want[:1] for want in wanted], tolerance)
        for card in cards:
            got = on_ranks(folder, ranks, prompts, vocab, card)
            compare(f"{ranks} ranks on {card}", got, [want[:1] for want in wanted], tolerance)
    for shard in (Shard(), *(Shard(rank, ranks) for rank in range(ranks))):
        check_weights(folder, shard)


def check_weights(folder: Path, shard: Shard) -> None:
    """Raise AssertionError where a rank does not keep the numbers that `ModelConfig.weights` counts."""
    runner = Runner.load(load_command(folder), shard, Device(1))
    planned = sum(weight.size(shard.size) for weight in runner.config.weights())
    assert isinstance(runner.model, torch.nn.Module)
    held = [value for layer in runner.model.modules() for value in vars(layer).values()]
    kept = sum(value.numel() for value in held if isinstance(value, torch.Tensor))
    assert not planned or abs(kept - planned) <= 0.01 * planned, (
        f"{shard}: {kept:,} numbers are kept, and weights() counts {planned:,}"
    )


def check_device(
    folder: Path,
    device: Device,
    name: str,
    cases: Sequence[tuple[list[int], int, Logprobs]],
    tolerance: float,
) -> None:
    """A device against what each text is known to give after so many prompt tokens."""
    texts, lengths, wanted = zip(*cases, strict=True)
    order = list(range(1, 256))
    random.Random(0).shuffle(order)
    for scattered in (range(1, 256), order):
        driver = make_driver(folder, device, scattered)
        got = [decoded(driver, lane, text, length) for lane, (text, length, _) in enumerate(cases)]
        compare(f"decode, {name}", got, wanted, tolerance)
    got = [chunked(make_driver(folder, device, order), text, length) for text, length, _ in cases]
    compare(f"prefill in chunks, {name}", got, wanted, tolerance)
    for pad in ((0, 0, 0), (3, 5, 2)):
        got = together(make_driver(folder, device, order), texts, lengths, pad)
        compare(f"rows together, padded by {pad}, {name}", got, wanted, tolerance)
    compare(f"shared prefix, {name}", *shared(make_driver(folder, device), texts[0]), tolerance)


def compare(name: str, got: Sequence[Logprobs], wanted: Sequence[Logprobs], tolerance: float) -> None:
    """Raise AssertionError where they differ by more than `tolerance`."""
    for index, (mine, other) in enumerate(zip(got, wanted, strict=True)):
        difference = (mine - other).abs().max().item()
        assert difference <= tolerance, (
            f"{name}: log-probabilities of prompt {index} differ by {difference:.2e}"
        )


def random_prompt(vocab: int, length: int, seed: int) -> list[int]:
    """Token ids."""
    return random.Random(seed).choices(range(vocab), k=length)


def generate(folder: Path, device: Device, prompt: Sequence[int]) -> list[int]:
    """DECODED tokens after the prompt, most likely first."""
    driver = make_driver(folder, device)
    driver.start(0, prompt_length=len(prompt))
    tokens = [driver.prefill({0: prompt})[0].token]
    while len(tokens) < DECODED:
        tokens.append(driver.decode([0])[0].token)
    return tokens


def whole(driver: Driver, text: Sequence[int], length: int) -> Logprobs:
    """Each position by a prefill of its own, from the beginning: nothing of the cache is read."""
    rows = []
    for end in range(length, len(text)):
        driver.start(0, prompt_length=length)
        rows.append(driver.prefill({0: text[:end]})[0].logits)
    return torch.stack(rows).log_softmax(-1)


def decoded(driver: Driver, lane: int, text: Sequence[int], length: int) -> Logprobs:
    """The prompt by prefill, each further token by a decode step."""
    driver.start(lane, prompt_length=length)
    rows = [driver.prefill({lane: text[:length]})[lane]]
    rows += [driver.decode([lane])[lane] for _ in range(len(text) - length - 1)]
    assert [row.token for row in rows] == list(text[length:]), "decoding chose other tokens"
    return torch.stack([row.logits for row in rows]).log_softmax(-1)


def chunked(driver: Driver, text: Sequence[int], length: int) -> Logprobs:
    """The prompt in chunks of 16, 1, 7, 7, … tokens, then decoding."""
    driver.start(0, prompt_length=length)
    sizes, begin = [16, 1], 0
    while begin < length:
        end = min(length, begin + (sizes.pop(0) if sizes else 7))
        answers = driver.prefill({0: text[begin:end]}, unfinished=[0] if end < length else [])
        begin = end
    rows = [answers[0].logits]
    rows += [driver.decode([0])[0].logits for _ in range(len(text) - length - 1)]
    return torch.stack(rows).log_softmax(-1)


def together(
    driver: Driver, texts: Sequence[Sequence[int]], lengths: Sequence[int], pad: tuple[int, int, int]
) -> list[Logprobs]:
    """All rows in the same steps, in an order that changes from step to step."""
    lanes = list(range(len(texts)))
    for lane in lanes:
        driver.start(lane, prompt_length=lengths[lane])
    answers = driver.prefill({lane: texts[lane][: lengths[lane]] for lane in lanes}, pad=pad)
    rows = {lane: [answers[lane].logits] for lane in lanes}
    for _ in range(DECODED - 1):
        lanes = lanes[1:] + lanes[:1]
        answers = driver.decode(lanes, pad=(pad[0], 0, pad[2]))
        for lane in lanes:
            rows[lane].append(answers[lane].logits)
    return [torch.stack(rows[lane]).log_softmax(-1) for lane in sorted(rows)]


def shared(driver: Driver, text: Sequence[int]) -> tuple[list[Logprobs], list[Logprobs]]:
    """A sequence that begins with another one's blocks, and the same without."""
    for lane in range(3):
        driver.start(lane, prompt_length=len(text))
    answers = driver.prefill({0: text, 1: text})
    driver.share(2, 0, BLOCK_SIZE)
    driver.prefill({2: text[BLOCK_SIZE : BLOCK_SIZE + 3]}, unfinished=[2])
    again = driver.prefill({2: text[BLOCK_SIZE + 3 :]})
    return [again[2].logits.log_softmax(-1)], [answers[1].logits.log_softmax(-1)]


def transformers_logprobs(
    folder: Path, reference: Any, texts: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[Logprobs]:
    """What transformers' model gives for each position, by a forward pass without a cache."""
    if reference is None:
        from transformers import AutoModelForCausalLM

        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    results = []
    with torch.inference_mode():
        for text, length in zip(texts, lengths, strict=True):
            logits = reference(torch.tensor([list(text)])).logits[0]
            results.append(logits[length - 1 : -1].float().log_softmax(-1))
    return results


def on_ranks(
    folder: Path, ranks: int, prompts: Sequence[Sequence[int]], vocab: int, card: str = ""
) -> list[Logprobs]:
    """After each prompt, by real rank processes: the whole distribution as the "top" of a step."""
    device, environment = ("hpu-sim", card_environment(card)) if card else ("cpu", {})
    blocks = max(-(-len(prompt) // BLOCK_SIZE) for prompt in prompts)
    with open_ranks(ranks, environment) as (send, reports):
        send(load_command(folder, device=device, top=vocab))
        _expect(reports, Loaded)
        send(Allocate(1 + blocks))
        _expect(reports, Allocated)
        results = []
        for prompt in prompts:
            send(_whole_distribution(prompt, blocks, vocab))
            results.append(_expect(reports, Result))
    logprobs = [torch.empty(1, vocab) for _ in results]
    for row, result in zip(logprobs, results, strict=True):
        row[0, unpack_ints(result.top_tokens).tolist()] = torch.tensor(unpack_floats(result.top_logprobs))
    return logprobs


def _whole_distribution(prompt: Sequence[int], blocks: int, vocab: int) -> Step:
    return Step(
        number=1,
        prefill=True,
        bucket_rows=1,
        bucket_tokens=len(prompt),
        bucket_blocks=blocks,
        lanes=ints([0]),
        starts=ints([0]),
        draws=ints([0]),
        tokens=ints(prompt),
        lengths=ints([len(prompt)]),
        table_lanes=ints([0]),
        table_starts=ints([0]),
        table_counts=ints([blocks]),
        table_blocks=ints(range(1, 1 + blocks)),
        params=(lane_params(0, prompt_length=len(prompt)),),
        top=vocab,
    )


def _expect(reports: Iterator[Report], kind: type[R]) -> R:
    report = next(reports)
    assert isinstance(report, kind), report
    return report


@contextlib.contextmanager
def open_ranks(
    ranks: int, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[Any, Iterator[Report]]]:
    """Real rank processes; yields what sends a command to all of them, and rank 0's reports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    connections, processes = [], []
    for rank in range(ranks):
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tgi.worker", str(theirs.fileno()), str(rank), str(ranks)]
        processes.append(subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment))
        theirs.close()
        connections.append(ours)

    def send(command: Command) -> None:
        for connection in connections:
            connection.sendall(frame(encode(command)))

    def reports() -> Iterator[Report]:
        reader = FrameReader()
        while data := connections[0].recv(1 << 16):
            for payload in reader.feed(data):
                report = decode_report(payload)
                if not isinstance(report, Progress):
                    yield report

    try:
        yield send, reports()
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.wait(30)
