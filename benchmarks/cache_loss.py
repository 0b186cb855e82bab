"""Loss of the demo model on words that it has not seen, with keys and values in 8 bits.

    apt-get install wordnet-base
    PYTHONPATH=.:demo python benchmarks/cache_loss.py

The question is computed first, and the answer with the question's keys and values from the cache of a
simulated Gaudi, which rounds them by scales of 1, or by those that `tgi calibrate` measured with words of the
training set.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from dictionary import BOS, exchange, read_wordnet
from format_loss import DEMO, held_out
from tgi_simulated_gaudi.device import open_card
from train import encode
from transformers import PreTrainedTokenizerFast

from tgi.calibrate import CONFIG, calibrate
from tgi.hub import Source
from tgi.protocol import unpack_floats
from tgi.testing.driver import make_driver

FP8 = "fp8_e4m3fn"


def loss(samples: list[tuple[list[int], int]], card: str, kv_cache_dtype: str, scales: str) -> float:
    """Return the mean loss of the answers' tokens but the first."""
    total, count = 0.0, 0
    with open_card(card) as device:
        driver = make_driver(
            DEMO, device, dtype="float32", kv_cache_dtype=kv_cache_dtype, quant_config=scales
        )
        for ids, asked in samples:
            driver.start(0)
            driver.prefill({0: ids[:asked]}, unfinished=[0])
            answer = ids[asked:]
            driver.prefill({0: answer}, targets={0: [*answer[1:], -1]})
            assert driver.result is not None
            logprobs = unpack_floats(driver.result.prompt_logprobs)
            total, count = total - float(logprobs.sum()), count + len(logprobs)
    return total / count


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--words", type=int, default=200)
    parser.add_argument("--card", default="gaudi3-lazy")
    args = parser.parse_args()
    asked = [(BOS + text, "\n" + said) for text, said in held_out(args.wordnet, args.words)]
    samples = encode(PreTrainedTokenizerFast.from_pretrained(DEMO), asked)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = random.Random(2)
        known = [
            "\n".join(exchange(entry, rng)) for entry in rng.sample(list(read_wordnet(args.wordnet)), 100)
        ]
        data = folder / "texts.jsonl"
        data.write_text("\n".join(json.dumps({"text": text}) for text in known))
        calibrate(Source(str(DEMO)), data, folder, weights=False, texts=100, tokens=64)
        rows = {
            "model's dtype": ("", ""),
            "fp8, scales of 1": (FP8, ""),
            "fp8, calibrated": (FP8, str(folder / CONFIG)),
        }
        print("| keys and values | loss | more |\n| --- | --- | --- |")
        exact = 0.0
        for title, settings in rows.items():
            value = loss(samples, args.card, *settings)
            exact = exact or value
            print(f"| {title} | {value:.4f} | {value / exact - 1:.2%} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
