"""Embeddings and scores: which models give them, how, and in which batches."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
import trio
from safetensors.torch import load_file

from tests.embedding_models import LENGTH, make_model
from tgi.config import Options
from tgi.embedder import read_pooling
from tgi.plugins import ConfigError
from tgi.pooler import PooledText
from tgi.pooler import Pooler as PoolerOfServer
from tgi.protocol.pooling import PoolBatch, Vectors
from tgi.text.tokenizer import Tokenizer
from tgi.worker.pool import Pooler

TEXTS = ["what is a violin", "hello", "a drum is hit hello world what is a drum"]
MODES = {
    "cls": {"pooling_mode_cls_token": True},
    "mean": {"pooling_mode_mean_tokens": True},
    "max": {"pooling_mode_max_tokens": True},
    "lasttoken": {"pooling_mode_lasttoken": True},
    "weightedmean": {"pooling_mode_weightedmean_tokens": True},
    "mean_sqrt_len_tokens": {"pooling_mode_mean_sqrt_len_tokens": True},
}


def pooled(features: torch.Tensor, mode: str) -> torch.Tensor:
    """Pool [T, size] of one text by the formulas in sentence-transformers' documentation."""
    places = torch.arange(1.0, len(features) + 1)
    return {
        "cls": features[0],
        "lasttoken": features[-1],
        "mean": features.mean(0),
        "max": features.max(0).values,
        "weightedmean": (features * places[:, None]).sum(0) / places.sum(),
        "mean_sqrt_len_tokens": features.sum(0) / len(features) ** 0.5,
    }[mode]


def encoded(folder: Path, texts: Sequence[str], seconds: Sequence[str] | None = None) -> PoolBatch:
    tokenizer = Tokenizer.from_folder(folder)
    others = seconds or [None] * len(texts)
    made = [tokenizer.encode_pair(one, other) for one, other in zip(texts, others, strict=True)]
    return PoolBatch([ids for ids, _ in made], [kinds for _, kinds in made])


def vectors(folder: Path, batch: PoolBatch) -> torch.Tensor:
    pooling = read_pooling(folder, Options())
    assert pooling is not None
    return Pooler(pooling).vectors(batch)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("BertModel", mode) for mode in MODES), ("RobertaModel", "mean"), ("Qwen3Model", "lasttoken")],
)
def test_vectors_are_those_of_transformers_text_by_text(tmp_path: Path, kind: str, mode: str) -> None:
    folder = make_model(tmp_path, kind, pooling=MODES[mode])
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        expected = [
            pooled(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0], mode) for text in TEXTS
        ]
    torch.testing.assert_close(
        vectors(folder, encoded(folder, TEXTS)), torch.stack(expected), rtol=0, atol=2e-5
    )


def test_several_modes_are_joined_and_go_through_a_dense_layer(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "a", "BertModel", pooling=MODES["mean"] | MODES["cls"])
    assert vectors(folder, encoded(folder, TEXTS)).shape == (3, 64)
    dense = make_model(tmp_path / "b", "BertModel", pooling=MODES["mean"], dense=True)
    pooling = read_pooling(dense, Options())
    assert pooling is not None
    assert pooling.dense == ("2_Dense",)
    batch, layer = encoded(dense, TEXTS), load_file(dense / "2_Dense" / "model.safetensors")
    before = Pooler(msgspec.structs.replace(pooling, dense=())).vectors(batch)
    expected = torch.tanh(before @ layer["linear.weight"].T + layer["linear.bias"])
    torch.testing.assert_close(Pooler(pooling).vectors(batch), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "Qwen3ForSequenceClassification"])
def test_scores_are_the_logits_of_pairs(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path, kind)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    query = ["what is a violin"] * 3
    with torch.inference_mode():
        inputs = [
            tokenizer(query[0], one, return_tensors="pt", return_token_type_ids="Bert" in kind)
            for one in TEXTS
        ]
        expected = [model(**one).logits[0] for one in inputs]
    found = vectors(folder, encoded(folder, query, TEXTS))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize("length", [3, 7, 12, 40])
@pytest.mark.parametrize("second", [None, "hello world what is a drum"])
def test_texts_are_cut_as_transformers_cuts_them(tmp_path: Path, second: str | None, length: int) -> None:
    folder = make_model(tmp_path, "BertModel")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    length += second is not None  # room for another [SEP]
    expected = tokenizer(
        "what is a violin drum", second, truncation=True, max_length=length, return_token_type_ids=True
    )
    ids, kinds = Tokenizer.from_folder(folder).encode_pair("what is a violin drum", second, truncate=length)
    assert (ids, kinds) == (expected["input_ids"], expected["token_type_ids"])


def settings(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"}


def test_which_models_give_embeddings(tmp_path: Path) -> None:
    def read(name: str, config: dict[str, Any] | None = None, pooling: dict[str, Any] | None = None) -> Any:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        files: dict[str, Any] = {}
        if pooling is not None:
            files = {"modules": [TRANSFORMER, POOLING], "1_Pooling__config": pooling}
        settings(folder, config={"architectures": [name], "model_type": "bert", **(config or {})}, **files)
        return read_pooling(folder, Options())

    assert read("LlamaForCausalLM") is None
    assert read("T5Model", {"is_encoder_decoder": True}) is None
    assert read("CLIPModel", {"vision_config": {}}) is None
    assert read("BertModel").modes == ("mean",)
    assert read("Qwen3ForCausalLM", pooling=MODES["lasttoken"]).modes == ("lasttoken",)
    assert read("BertModel", pooling={"pooling_mode": "cls"}).modes == ("cls",)


@pytest.mark.parametrize(
    ("config", "files", "options", "reason"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, {}, {}, "a classifier with 2 labels"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, {}, {"device": "hpu"}, "on --device cpu"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, {}, {"num_shard": 2}, "on one rank"),
        ({}, {"modules": [TRANSFORMER, {"path": "1", "type": "a.LSTM"}]}, {}, "modules.json: LSTM is not"),
        ({}, {"modules": {"a": 1}}, {}, "modules.json makes no sense"),
        (
            {},
            {"modules": [TRANSFORMER, POOLING], "1_Pooling__config": {"include_prompt": False}},
            {},
            "'include_prompt' is false",
        ),
        (
            {},
            {"modules": [TRANSFORMER, POOLING], "1_Pooling__config": {"pooling_mode": "attention"}},
            {},
            "the pooling mode 'attention'",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_pooling(settings(tmp_path, config=config, **files), Options(**options))


@pytest.mark.parametrize(
    ("config", "files", "options", "length"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, {}, {}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, {}, 512),
        ({"max_position_embeddings": 512}, {"sentence_bert_config": {"max_seq_length": 256}}, {}, 256),
        ({"max_position_embeddings": 512}, {"tokenizer_config": {"model_max_length": 1e30}}, {}, 512),
        ({"max_position_embeddings": 512}, {"tokenizer_config": {"model_max_length": 128}}, {}, 128),
        ({"max_position_embeddings": 512}, {}, {"max_input_tokens": 100}, 100),
        ({}, {}, {}, 512),
    ],
)
def test_the_longest_text(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], options: dict[str, Any], length: int
) -> None:
    folder = settings(
        tmp_path, config={"architectures": ["BertModel"], "model_type": "bert", **config}, **files
    )
    pooling = read_pooling(folder, Options(**options))
    assert pooling is not None
    assert pooling.max_tokens == length


class FakeChild:
    """A process that gives each text its first token, after a second."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._send, self._receive = trio.open_memory_channel[PoolBatch](1)

    async def send(self, payload: bytes) -> None:
        batch = msgspec.msgpack.decode(payload, type=PoolBatch)
        self.batches.append([len(one) for one in batch.ids])
        await self._send.send(batch)

    async def receive(self) -> bytes:
        batch = await self._receive.receive()
        await trio.sleep(1)
        answer = np.array([[one[0]] for one in batch.ids], np.float32)
        return msgspec.msgpack.encode(Vectors(answer.tobytes()))


def text(first: int, length: int) -> PooledText:
    return PooledText([first] * length, [0] * length)


@pytest.mark.autojump
async def test_batches_hold_as_many_tokens_as_they_may_in_the_order_of_arrival() -> None:
    child: Any = FakeChild()
    pooler = PoolerOfServer(child, 10, 1)
    found: dict[int, list[float]] = {}

    async def ask(number: int, *lengths: int) -> None:
        await trio.sleep(number / 10)
        rows = await pooler.pool([text(number * 10 + index, length) for index, length in enumerate(lengths)])
        found[number] = rows[:, 0].tolist()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pooler.run)
        async with trio.open_nursery() as clients:
            clients.start_soon(ask, 1, 2)  # alone, since nothing else is there
            clients.start_soon(ask, 2, 3, 3, 3, 4)
            clients.start_soon(ask, 3, 30, 1)
        nursery.cancel_scope.cancel()
    assert child.batches == [[2], [3, 3, 3], [4], [30], [1]]
    assert found == {1: [10.0], 2: [20.0, 21.0, 22.0, 23.0], 3: [30.0, 31.0]}


@pytest.mark.autojump
async def test_who_leaves_costs_nothing_and_the_end_ends_all() -> None:
    from tgi.errors import Unavailable

    child: Any = FakeChild()
    pooler = PoolerOfServer(child, 4, 1)

    async def give_up() -> None:
        with trio.move_on_after(0.5):
            await pooler.pool([text(1, 4)])
            raise AssertionError("it takes a second")

    async def stay() -> None:
        await trio.sleep(0.1)
        with pytest.raises(Unavailable):
            await pooler.pool([text(3, 4), text(4, 4)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pooler.run)
        async with trio.open_nursery() as clients:
            clients.start_soon(give_up)
            clients.start_soon(give_up)
            clients.start_soon(stay)
            await trio.sleep(1.5)
            pooler.fail_all(Unavailable("shutting down"))
        nursery.cancel_scope.cancel()
    assert child.batches == [[4], [4]], "the second of those that gave up was not computed"


def test_the_length_of_a_model_made_here(tmp_path: Path) -> None:
    pooling = read_pooling(make_model(tmp_path, "BertModel"), Options())
    assert pooling is not None
    assert pooling.max_tokens == LENGTH
