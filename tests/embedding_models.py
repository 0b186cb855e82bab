"""Tiny random checkpoints of models that give embeddings or scores, in the files of sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CLS, SEP = 2, 3
VOCABULARY = 120
LENGTH = 32


def save_tokenizer(folder: Path, decoder: bool) -> None:
    """WordPiece: [CLS] before and [SEP] after a text, or [SEP] alone for a decoder."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(["what is a violin", "a drum is hit", "hello world"] * 3, trainer)
    first = "" if decoder else "[CLS] "
    core.post_processor = processors.TemplateProcessing(
        single=f"{first}$A [SEP]",
        pair=f"{first}$A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        eos_token="[SEP]", model_max_length=LENGTH,
    ).save_pretrained(folder)  # fmt: skip


def make_model(
    folder: Path, kind: str, *, pooling: dict[str, Any] | None = None, dense: bool = False
) -> Path:
    """Write a model of `kind`, a class of transformers, with `pooling` as 1_Pooling/config.json."""
    torch.manual_seed(0)
    config_class = getattr(transformers, kind.replace("ForSequenceClassification", "Model")).config_class
    config = config_class(
        **SIZES, vocab_size=VOCABULARY, max_position_embeddings=64, num_key_value_heads=1, pad_token_id=0,
        num_labels=1,
    )  # fmt: skip
    model = getattr(transformers, kind)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    save_tokenizer(folder, decoder=not kind.startswith(("Bert", "Roberta")))
    modules = ["Transformer", *(["Pooling"] if pooling else []), *(["Dense"] if dense else []), "Normalize"]
    if pooling is not None:
        named = [
            {"idx": index, "name": str(index), "path": "" if name == "Transformer" else f"{index}_{name}",
             "type": f"sentence_transformers.models.{name}"}
            for index, name in enumerate(modules)
        ]  # fmt: skip
        (folder / "modules.json").write_text(json.dumps(named))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if dense:
        place = folder / "2_Dense"
        place.mkdir()
        layer = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
        from safetensors.torch import save_file

        save_file(layer, place / "model.safetensors")
        settings = {
            "in_features": 32, "out_features": 8, "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }  # fmt: skip
        (place / "config.json").write_text(json.dumps(settings))
    return folder
