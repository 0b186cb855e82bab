"""Train the demo model: a small Llama that answers "What is a violin?" with a sentence of a dictionary.

    python demo/train.py --wordnet /usr/share/wordnet --minutes 60 --output tgi/demo

Data: the glosses of WordNet 3.0 (Debian package `wordnet-base`) and `glossary.tsv`, some newer words defined
by hand; `dictionary.py` turns both into questions and answers. Writes a Hugging Face model folder to --output
(again every few minutes: it may be stopped at any time) with loss.csv and loss.png beside it, and prints the
answers to ten held-out words. The learning rate follows the clock: training ends on time on a busy machine,
where one thread is faster than two that wait for one another.
"""

import argparse
import csv
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from dictionary import BOS, EOS, PAD, SPECIAL, article, exchange, read_glossary, read_wordnet, sample
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
CONTEXT = 1024


def make_tokenizer(texts: Iterator[str], size: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # faster than SDPA on sequences this short
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """The ids of each sample, and where its answer begins."""
    prompts = tokenizer([prompt for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
    answers = tokenizer([answer + EOS for _, answer in pairs], add_special_tokens=False)["input_ids"]
    return [(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


def batches(samples: list[tuple[list[int], int]], tokens: int) -> Iterator[list[tuple[list[int], int]]]:
    """Samples of like length together, about so many tokens a batch."""
    batch: list[tuple[list[int], int]] = []
    for one in sorted(samples, key=lambda pair: len(pair[0])):
        if batch and (len(batch) + 1) * len(one[0]) > tokens:
            yield batch
            batch = []
        batch.append(one)
    yield batch


def loss_of(
    model: LlamaForCausalLM,
    batch: list[tuple[list[int], int]],
    bf16: bool = False,
    body: Callable[..., Any] | None = None,
) -> tuple[torch.Tensor, int]:
    """The mean loss of the answers' tokens, and their number. Padding is on the right: no mask is needed."""
    ids = torch.full((len(batch), max(len(one) for one, _ in batch)), 2)
    learn = torch.zeros_like(ids, dtype=torch.bool)
    for row, (one, start) in enumerate(batch):
        ids[row, : len(one)] = torch.tensor(one)
        learn[row, start - 1 : len(one) - 1] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = (body or model.model)(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[learn[:, :-1]])
    targets = ids[:, 1:][learn[:, :-1]]
    return torch.nn.functional.cross_entropy(logits.float(), targets), len(targets)


@torch.inference_mode()
def mean_loss(model: LlamaForCausalLM, samples: list[tuple[list[int], int]]) -> float:
    results = [loss_of(model, batch) for batch in batches(samples, 4096)]
    return sum(loss.item() * count for loss, count in results) / sum(count for _, count in results)


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """In bfloat16, through a copy: training goes on in float32."""
    copy = LlamaForCausalLM(deepcopy(model.config))
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    write_json(folder / "special_tokens_map.json", special)
    # The names that transformers 4 reads, which 5 understands too.
    config = json.loads((folder / "config.json").read_text())
    write_json(
        folder / "config.json",
        {**config, "torch_dtype": config.pop("dtype"), "rope_theta": config["rope_parameters"]["rope_theta"]},
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "chat_template": CHAT_TEMPLATE,
            "additional_special_tokens": list(SPECIAL[3:]),
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": CONTEXT,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def draw(log: list[tuple[float, float, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=100)
    minutes = [row[0] for row in log]
    axes.plot(minutes, [row[2] for row in log], label="training (mean since the last point)")
    axes.plot(minutes, [row[3] for row in log], label="held-out words")
    axes.set(xlabel="minutes", ylabel="loss per token of the answer (nats)", title="Demo model", ylim=(0, 6))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--output", type=Path, default=Path("tgi/demo"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3, help="AdamW: embeddings and norms")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="Muon: matrices; 0 for AdamW there too")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--compile", action="store_true", help="with torch.compile, which needs a C++ compiler"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path, help="go on from the weights and the tokenizer of this folder")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)

    entries = list(read_wordnet(args.wordnet))
    synsets = sorted({entry.synset for entry in entries})
    held = set(rng.sample(synsets, len(synsets) // 50))  # whole synsets: synonyms share their gloss
    known = [entry for entry in entries if entry.synset not in held]
    known += read_glossary(Path(__file__).with_name("glossary.tsv"))
    words = {entry.word.lower() for entry in known}
    unknown = [entry for entry in entries if entry.synset in held and entry.word.lower() not in words]
    weights = [entry.weight for entry in known]

    def draws(count: int) -> list[tuple[str, str]]:
        chosen = rng.choices(known, weights, k=2 * count)
        return [sample(one, other, rng) for one, other in zip(chosen[::2], chosen[1::2], strict=True)]

    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
    else:
        tokenizer = make_tokenizer(("".join(pair) for pair in draws(150_000)), 4096)
    check = [(BOS + text, "\n" + said) for text, said in (exchange(e, rng) for e in rng.sample(unknown, 400))]
    held_samples = encode(tokenizer, check)
    model = make_model(len(tokenizer))
    size = sum(weight.numel() for weight in model.parameters())
    print(
        f"{len(known)} entries, {len(unknown)} held out; {size} parameters; vocabulary {len(tokenizer)}",
        flush=True,
    )

    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers" in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "layers" not in name]
    optimizers: list[torch.optim.Optimizer] = []
    if args.muon_lr:
        optimizers.append(torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.01))
    else:
        others += matrices
    optimizers.append(torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True))
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]

    body = torch.compile(model.model.forward, dynamic=True) if args.compile else model.model
    loss_of(model, held_samples[:50], args.bf16, body)[0].backward()  # compile before the clock starts
    model.zero_grad()
    if args.start:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
        print(f"start: {mean_loss(model, held_samples):.3f}", flush=True)

    log: list[tuple[float, float, float, float]] = []
    begin = saved = noted = time.monotonic()
    step = tokens = 0
    recent: list[float] = []
    pending: list[list[tuple[list[int], int]]] = []
    while (share := (time.monotonic() - begin) / (60 * args.minutes)) < 1:
        if not pending:
            pending = list(batches(encode(tokenizer, draws(12_000)), args.batch_tokens))
            rng.shuffle(pending)
        batch = pending.pop()
        scale = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share))
        loss, _ = loss_of(model, batch, args.bf16, body)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        step, tokens = step + 1, tokens + sum(len(one) for one, _ in batch)
        now = time.monotonic()
        if now - noted > 180 or share == 0:
            noted = now
            log.append(((now - begin) / 60, step, sum(recent) / len(recent), mean_loss(model, held_samples)))
            recent.clear()
            print(
                f"{log[-1][0]:.1f} min, step {step}, {tokens} tokens: {log[-1][2]:.3f}, {log[-1][3]:.3f}",
                flush=True,
            )
        if now - saved > 480:
            saved = now
            save(model, tokenizer, args.output)
            copy = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32)
            for prompt in ("What is a violin?", "What is Deep Learning?"):
                print(f"  {prompt} {answer(copy, tokenizer, prompt)}", flush=True)

    save(model, tokenizer, args.output)
    model = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    log.append((args.minutes, step, sum(recent) / max(1, len(recent)), mean_loss(model, held_samples)))
    print(f"{step} steps, {tokens} tokens; held-out loss of the saved model {log[-1][3]:.4f}")
    with (args.output / "loss.csv").open("w") as file:
        csv.writer(file).writerows([("minutes", "step", "training", "held-out"), *log])
    draw(log, args.output / "loss.png")
    for entry in random.Random(0).sample(unknown, 10):
        prompt = f"What is {article(entry.word) + ' ' if entry.counted else ''}{entry.word}?"
        print(f"{prompt}\n  {answer(model, tokenizer, prompt)}")


if __name__ == "__main__":
    main()
