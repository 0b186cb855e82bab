"""`check_generation(folder)`: the text of a model against that of transformers' `generate`.

The slower and plainer check beside `check_architecture`: many tokens, each of which depends on all before it,
compared with a text in which nothing is ours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice

from .driver import BLOCK_SIZE, Answer, Driver, make_driver
from .rank_threads import on_threads
from .runs import random_prompt

PAUSE = 3
"""Decode steps between two sequences that join a batch."""


@attrs.frozen(eq=False)
class Text:
    """Continuation of a prompt by transformers, with its logits [tokens, vocab]."""

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor


def check_generation(
    folder: Path | str,
    lengths: Sequence[int] = (5, 40, 90),
    *,
    tokens: int = 64,
    tolerance: float = 1e-4,
    reference: Callable[[], Any] | None = None,
    cards: Sequence[str] = (),
    ranks: int = 1,
    expert_parallel: bool = False,
) -> None:
    """Raise AssertionError if the tokens after random prompts of these lengths are not transformers'.

    The prompts run alone, each in two chunks; in one batch, which they join one after another; and the last
    once more after blocks that it has left in the cache; on the CPU, and on simulated `cards` like those of
    `check_architecture`. On the CPU they also run alone on `ranks` ranks, if there are several, with
    `expert_parallel` each with whole experts. `reference` makes the model to compare with, if transformers
    does not know the folder; each prompt gets a new one, for some RoPEs remember longer sequences.
    """
    texts = [_write(Path(folder), length, tokens, reference) for length in lengths]
    _check_device(folder, texts, CpuDevice(1), "on the CPU", tolerance)
    if ranks > 1:
        _check_ranks(Path(folder), texts, ranks, tolerance, expert_parallel)
    if cards:
        from tgi_simulated_gaudi.device import open_card  # a distribution of its own
    for card in cards:
        with open_card(card) as device:
            _check_device(folder, texts, device, f"on {card}", tolerance)


def _check_device(
    folder: Path | str, texts: Sequence[Text], device: Device, where: str, tolerance: float
) -> None:
    alone = [_alone(make_driver(folder, device), text) for text in texts]
    _compare(texts, alone, f"{where}, alone", tolerance)
    driver = make_driver(folder, device)
    _compare(texts, _mixed(driver, texts), f"{where}, in a batch", tolerance)
    again = [_again(driver, texts[-1], len(texts))]
    _compare(texts[-1:], again, f"{where}, after a shared prefix", tolerance)


def _check_ranks(
    folder: Path, texts: Sequence[Text], ranks: int, tolerance: float, expert_parallel: bool
) -> None:
    def run(driver: Driver) -> list[torch.Tensor]:
        every = [_alone(driver, text) for text in texts]
        return [torch.stack([answer.logits for answer in row]) for row in every]

    got = on_threads(folder, ranks, run, range(1, 256), expert_parallel=expert_parallel)
    for text, logits in zip(texts, got, strict=True):
        _compare_one(text, logits, logits.argmax(-1).tolist(), f"on {ranks} ranks", tolerance)


def _write(folder: Path, length: int, count: int, reference: Callable[[], Any] | None) -> Text:
    from transformers import AutoModelForCausalLM

    own = AutoModelForCausalLM.from_pretrained
    model: Any = own(folder, torch_dtype=torch.float32) if reference is None else reference()
    prompt = random_prompt(model.config.vocab_size, length, length)
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, length, dtype=torch.int64),  # else it hides every token 0
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return Text(prompt, found.sequences[0, length:].tolist(), torch.cat(found.logits))


def _alone(driver: Driver, text: Text) -> list[Answer]:
    driver.start(0, prompt_length=len(text.prompt))
    half = len(text.prompt) // 2
    driver.prefill({0: text.prompt[:half]}, unfinished=[0])
    answers = [driver.prefill({0: text.prompt[half:]})[0]]
    return answers + [driver.decode([0])[0] for _ in text.tokens[1:]]


def _mixed(driver: Driver, texts: Sequence[Text]) -> list[list[Answer]]:
    answers: list[list[Answer]] = []
    while True:
        running = [lane for lane, got in enumerate(answers) if len(got) < len(texts[lane].tokens)]
        joins = len(answers) < len(texts) and (not running or len(answers[-1]) > PAUSE)
        if joins:
            lane, prompt = len(answers), texts[len(answers)].prompt
            driver.start(lane, prompt_length=len(prompt))
            answers.append([driver.prefill({lane: prompt})[lane]])
        elif running:
            for lane, answer in driver.decode(running).items():
                answers[lane].append(answer)
        else:
            return answers


def _again(driver: Driver, text: Text, lane: int) -> list[Answer]:
    """Compute the text again, after the whole blocks of its prompt that the lane before has."""
    shared = (len(text.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
    driver.start(lane, prompt_length=len(text.prompt))
    driver.share(lane, lane - 1, shared)
    answers = [driver.prefill({lane: text.prompt[shared:]})[lane]]
    return answers + [driver.decode([lane])[lane] for _ in text.tokens[1:]]


def _compare(texts: Sequence[Text], answers: Sequence[list[Answer]], how: str, tolerance: float) -> None:
    for text, row in zip(texts, answers, strict=True):
        logits = torch.stack([answer.logits for answer in row])
        _compare_one(text, logits, [answer.token for answer in row], how, tolerance)


def _compare_one(text: Text, logits: torch.Tensor, tokens: list[int], how: str, tolerance: float) -> None:
    place = f"{how}, after a prompt of {len(text.prompt)}"
    difference = (logits - text.logits).abs().max().item()
    assert difference <= tolerance, f"{place}: logits differ by {difference:.1e}"
    assert tokens == text.tokens, f"{place}: other tokens"
