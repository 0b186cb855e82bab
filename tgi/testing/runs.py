"""Ways to compute the same text, which `check_architecture` compares.

Each gives the logarithms of the probabilities of the whole vocabulary, after the last token of the prompt and
after each that has been generated.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .driver import BLOCK_SIZE, Driver

Logprobs = torch.Tensor
"""Log-probabilities [tokens, vocab], float32, after the last prompt token and each generated one."""
DECODED = 6
"""Number of tokens generated after each prompt."""


def random_prompt(vocab: int, length: int, seed: int) -> list[int]:
    """Return random token ids."""
    return random.Random(seed).choices(range(vocab), k=length)


def generate(driver: Driver, prompt: Sequence[int]) -> list[int]:
    """Return the DECODED tokens that follow a prompt greedily."""
    driver.start(0, prompt_length=len(prompt))
    tokens = [driver.prefill({0: prompt})[0].token]
    while len(tokens) < DECODED:
        tokens.append(driver.decode([0])[0].token)
    return tokens


def whole(driver: Driver, text: Sequence[int], length: int) -> Logprobs:
    """Compute each position by a prefill from the beginning, which reads nothing of the cache."""
    rows = []
    for end in range(length, len(text)):
        driver.start(0, prompt_length=length)
        rows.append(driver.prefill({0: text[:end]})[0].logits)
    return torch.stack(rows).log_softmax(-1)


def decoded(driver: Driver, lane: int, text: Sequence[int], length: int) -> Logprobs:
    """Compute the prompt by prefill, and each further token by a decode step."""
    driver.start(lane, prompt_length=length)
    rows = [driver.prefill({lane: text[:length]})[lane]]
    rows += [driver.decode([lane])[lane] for _ in range(len(text) - length - 1)]
    return torch.stack([row.logits for row in rows]).log_softmax(-1)


def told(driver: Driver, lane: int, text: Sequence[int], length: int) -> Logprobs:
    """Compute the prompt by prefill, and each further token by a step that names it."""
    driver.start(lane, prompt_length=length)
    parts = [text[:length], *([token] for token in text[length:-1])]
    return torch.stack([driver.prefill({lane: part})[lane].logits for part in parts]).log_softmax(-1)


def chunked(driver: Driver, prompt: Sequence[int]) -> Logprobs:
    """Compute the last token of the prompt, in chunks of 9, 1, 7, 7, … tokens.

    The last chunk is of more tokens than a step that might be taken for a decode step.
    """
    driver.start(0, prompt_length=len(prompt))
    sizes, begin, end = [9, 1], 0, 0
    while end < len(prompt):
        begin, end = end, end + (sizes.pop(0) if sizes else 7)
        end = end if end + 5 <= len(prompt) else len(prompt)
        answers = driver.prefill({0: prompt[begin:end]}, unfinished=[0] if end < len(prompt) else [])
    return answers[0].logits.log_softmax(-1)[None]


def together(
    driver: Driver, texts: Sequence[Sequence[int]], lengths: Sequence[int], pad: tuple[int, int, int]
) -> list[Logprobs]:
    """Compute all rows in the same steps, in an order that changes from step to step."""
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
    """A sequence that begins with a block of a longer one, and the same without; none where the model's
    config says that such sequences share nothing."""
    limit = driver.runner.config.prefix_limit
    text = text[:limit]
    part = text[: BLOCK_SIZE + 5]
    if len(part) <= BLOCK_SIZE:
        return [], []
    for lane, tokens in enumerate((text, part, part)):
        driver.start(lane, prompt_length=len(tokens))
    driver.prefill({0: text})
    alone = driver.prefill({1: part})
    driver.share(2, 0, BLOCK_SIZE)
    again = driver.prefill({2: part[BLOCK_SIZE:]})
    return [again[2].logits.log_softmax(-1)], [alone[1].logits.log_softmax(-1)]


def transformers_logprobs(folder: Path, reference: Any, texts: Sequence[Sequence[int]]) -> list[Logprobs]:
    """Return the log-probabilities of transformers' model, by a forward pass without a cache."""
    if reference is None:
        from transformers import AutoModelForCausalLM, __version__
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # In version 5, eager attention gives Falcon's ALiBi another scale than the default does.
        attention = "eager" if __version__.startswith("4.") else None
        reference = AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32, attn_implementation=attention
        )
    with torch.inference_mode():
        logits = [reference(torch.tensor([list(text)])).logits[0] for text in texts]
    return [some.float().log_softmax(-1) for some in logits]
