"""Models from folders, from the cache, and from a small imitation of the Hub on a local port."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import transformers
import trio
from safetensors.torch import load_file

from tests.own_processes import children_running
from tgi.hub import Source, fetch_model, find_config, find_model
from tgi.hub_errors import HubError
from tgi.lifecycle import Lifecycle
from tgi.testing.models import make_llama
from tgi.text.tokenizer import Tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's API that huggingface_hub needs for one model."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}
    status: ClassVar[tuple[int, str]] = (200, "")
    refused: ClassVar[str] = ""
    """Part of the paths that are answered with `status`."""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('authorization', '')}")
        path = self.path.partition("?")[0]
        if self.status[0] != 200 and self.refused in path:
            self._send(b"{}", {"X-Error-Code": self.status[1]}, self.status[0])
        elif re.fullmatch(rf"/api/models/{NAME}(/revision/(main|{COMMIT}))?", path):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            self._json({"id": NAME, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        elif path.startswith(f"/api/models/{NAME}/revision/"):
            self._send(b"{}", {"X-Error-Code": "RevisionNotFound"}, 404)
        elif path == f"/api/models/{NAME}/tree/{COMMIT}":
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in self.files.items()
                ]
            )
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            data = self.files[path.rpartition("/")[2]]
            self._send(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET

    def _json(self, data: object) -> None:
        self._send(json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[tuple[type[Hub], str]]:
    handler = type("Handler", (Hub,), {"asked": [], "status": (200, "")})
    handler.files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a killed child resets connections
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def environment(endpoint: str, cache: Path, **more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **more}


def fetch(
    endpoint: str, cache: Path, name: str = NAME, revision: str | None = None, **more: str
) -> tuple[Path, Lifecycle]:
    lifecycle = Lifecycle()
    source = Source(name, revision)
    folder = trio.run(fetch_model, source, lifecycle, environment(endpoint, cache, **more))
    return folder, lifecycle


def test_a_complete_folder_is_used_as_it_is(checkpoint: Path) -> None:
    lifecycle = Lifecycle()
    assert trio.run(fetch_model, Source(str(checkpoint)), lifecycle, {}) == checkpoint
    assert find_model(Source(str(checkpoint))) == checkpoint
    # C1: TGI asks the Hub for a folder with a revision.
    assert find_model(Source(str(checkpoint), "main")) == checkpoint


@pytest.mark.contract("C1")
def test_a_model_is_downloaded_once(hub: tuple[type[Hub], str], checkpoint: Path, tmp_path: Path) -> None:
    handler, endpoint = hub
    handler.files["README.md"] = b"not needed"
    folder, lifecycle = fetch(endpoint, tmp_path, HF_TOKEN="hf_secret")
    assert folder == tmp_path / "hub/models--org--tiny/snapshots" / COMMIT
    assert {path.name for path in folder.iterdir()} == {path.name for path in checkpoint.iterdir()}
    for path in folder.iterdir():
        assert path.read_bytes() == (checkpoint / path.name).read_bytes()
    assert lifecycle.stage == f"downloading {NAME}"
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    assert lifecycle.done == lifecycle.total == sizes
    assert any("Bearer hf_secret" in line for line in handler.asked)

    handler.asked.clear()
    assert fetch(endpoint, tmp_path)[0] == folder
    assert not any("model.safetensors" in line for line in handler.asked)
    handler.asked.clear()
    assert fetch(endpoint, tmp_path, HF_HUB_OFFLINE="1")[0] == folder
    assert handler.asked == []


def test_a_description_alone_is_all_that_is_downloaded(
    hub: tuple[type[Hub], str], checkpoint: Path, tmp_path: Path
) -> None:
    handler, endpoint = hub
    code = f"from tgi.hub import *; print(find_config(Source({NAME!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(endpoint, tmp_path), capture_output=True, text=True
    )
    folder = Path(done.stdout.strip())
    assert (folder / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    assert not any("safetensors" in line for line in handler.asked)


def test_folders_with_a_description(checkpoint: Path, tmp_path: Path) -> None:
    assert find_config(Source(str(checkpoint))) == checkpoint
    assert find_config(Source(str(checkpoint / "config.json"))) == checkpoint
    with pytest.raises(HubError, match="there is no folder /none"):
        find_config(Source("/none"))
    with pytest.raises(HubError, match=r"has no config\.json"):
        find_config(Source(str(tmp_path)))


@pytest.mark.contract("--huggingface-hub-cache")
def test_the_cache_can_be_elsewhere(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    source = Source(NAME, cache=tmp_path / "here")
    folder = trio.run(fetch_model, source, Lifecycle(), environment(hub[1], tmp_path / "not-here"))
    assert folder.is_relative_to(tmp_path / "here")


REFUSALS = [
    (401, "", "wants a token that may read org/tiny: set HF_TOKEN"),
    (403, "", "HF_TOKEN may not read org/tiny"),
    (403, "GatedRepo", "is gated: accept its conditions on the Hub, and set HF_TOKEN"),
    (404, "RepoNotFound", "no such model on the Hub"),
    (404, "", "lacks a file on 127.0.0.1 (404): is HF_ENDPOINT the Hub?"),
    (429, "", "too many requests from here (429): wait some minutes, or set HF_TOKEN"),
    (500, "", "127.0.0.1 has a fault of its own (500): try again later"),
    (503, "", "127.0.0.1 has a fault of its own (503)"),
    (504, "", "127.0.0.1 has a fault of its own (504)"),
    (407, "", "wants a user and a password (407)"),
]


@pytest.mark.parametrize(("status", "code", "said"), REFUSALS)
def test_what_the_hub_refuses_is_one_line(
    hub: tuple[type[Hub], str], tmp_path: Path, status: int, code: str, said: str
) -> None:
    hub[0].status = (status, code)
    check_refusal(hub[1], tmp_path, said)


def check_refusal(endpoint: str, cache: Path, said: str, **variables: str) -> None:
    with pytest.raises(HubError) as caught:
        fetch(endpoint, cache, **variables)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_the_hub_refuses_is_one_line(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    hub[0].status, hub[0].refused = (403, ""), "/resolve/"
    check_refusal(hub[1], tmp_path, "HF_TOKEN may not read org/tiny (403)")


@pytest.mark.parametrize(
    ("endpoint", "proxy", "said"),
    [
        ("http://127.0.0.1:9", "", "127.0.0.1 cannot be reached: [Errno 111] Connection refused"),
        ("http://hub.invalid", "", "the name of hub.invalid cannot be resolved: without a network"),
        ("http://hub.invalid", "http://127.0.0.1:9", "the proxy 127.0.0.1:9 cannot be reached: [Errno 111]"),
        ("http://hub.invalid", "http://me:secret@no.invalid:1", "of the proxy no.invalid:1 cannot be"),
    ],
    ids=["refused", "no name", "proxy refused", "no name of a proxy"],
)
def test_without_a_network_the_first_start_is_one_line(
    tmp_path: Path, endpoint: str, proxy: str, said: str
) -> None:
    variables = {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
    check_refusal(endpoint, tmp_path, said, **variables)
    command = [sys.executable, "-m", "tgi", "download-weights", NAME]
    variables = environment(endpoint, tmp_path, **variables)
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert "secret" not in done.stderr


def test_a_proxy_that_refuses_is_named(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    """The imitation knows no CONNECT, which is how a proxy is asked for a connection with TLS."""
    proxy = {"HTTPS_PROXY": hub[1], "https_proxy": hub[1], "NO_PROXY": "", "no_proxy": ""}
    address = hub[1].removeprefix("http://")
    check_refusal("https://hub.invalid", tmp_path, f"the proxy {address} refuses: 501", **proxy)


def test_a_cache_that_lacks_files_is_named(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    folder, _ = fetch(hub[1], tmp_path)
    (folder / "model.safetensors").unlink()
    check_refusal(
        "http://127.0.0.1:9", tmp_path, "org/tiny is only partly in the cache, and 127.0.0.1 cannot"
    )


def test_a_revision_that_is_not_there(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    with pytest.raises(HubError, match="org/tiny has no revision v9"):
        fetch(hub[1], tmp_path, revision="v9")


@pytest.mark.contract("C1")
def test_offline_without_the_model(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="not in the cache"):
        fetch("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    with pytest.raises(HubError, match="not in the cache"):
        fetch("http://127.0.0.1:9", tmp_path)


def test_names_that_can_be_nothing(tmp_path: Path) -> None:
    for name in ("/no/such/folder", "./none", "a/b/c"):
        with pytest.raises(HubError, match="there is no folder"):
            find_model(Source(name))
    with pytest.raises(HubError, match="neither a folder nor an id"):
        fetch("http://127.0.0.1:9", tmp_path, name="bad name!")


def test_a_cache_that_cannot_be_written(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file in the way")
    with pytest.raises(HubError) as caught:
        fetch(hub[1], tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"no config\.json"):
        find_model(Source(str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HubError, match="no weights"):
        find_model(Source(str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(HubError, match=r"no \*\.safetensors; .* --load-format auto"):
        find_model(Source(str(tmp_path), load_format="safetensors"))


def test_made_up_weights_need_no_files(hub: tuple[type[Hub], str], checkpoint: Path, tmp_path: Path) -> None:
    source = Source(NAME, cache=tmp_path / "cache", load_format="dummy")
    folder = trio.run(fetch_model, source, Lifecycle(), environment(hub[1], tmp_path))
    wanted = {path.name for path in checkpoint.iterdir()} - {"model.safetensors"}
    assert {path.name for path in folder.iterdir()} == wanted
    assert trio.run(fetch_model, Source(str(folder), load_format="dummy"), Lifecycle(), {}) == folder


def test_old_weights_are_converted_beside_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    """Two .bin files, one with tied tensors, in a folder that stays untouched."""
    old = tmp_path / "old"
    old.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (old / path.name).write_bytes(path.read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    first = {name: tensors[name] for name in names[:5]}
    tied = {**{name: tensors[name] for name in names[5:]}, "copy": tensors[names[5]]}
    torch.save(first, old / "pytorch_model-00001-of-00002.bin")
    torch.save(tied, old / "pytorch_model-00002-of-00002.bin")
    before = sorted(path.name for path in old.iterdir())

    source = Source(str(old), cache=tmp_path / "cache")
    folder = find_model(source)
    assert sorted(path.name for path in old.iterdir()) == before
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {*names, "copy"}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(folder / file)[name], tied.get(name, first.get(name)))
    assert find_model(source) == folder


def test_a_pickle_that_would_run_code_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (old / name).write_bytes((checkpoint / name).read_bytes())
    torch.save({"weight": partial(print, "code of a checkpoint")}, old / "pytorch_model.bin")
    with pytest.raises(HubError, match=r"made of what it has: \*\.safetensors: "):
        find_model(Source(str(old), cache=tmp_path))


def test_a_tokenizer_that_is_not_there_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """Before transformers is imported, which takes seconds and does not say what is missing."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(HubError, match=r"bare has no tokenizer: neither tokenizer\.json nor .*Copy the tok"):
        find_model(Source(str(bare), cache=tmp_path))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model-Q4.gguf": "GGUF"}, "is GGUF, the format of llama.cpp"),
        ({"model-Q4.gguf": "GGUF", "config.json": "{}"}, "is GGUF, the format of llama.cpp"),
        ({"params.json": "{}", "consolidated.safetensors": ""}, "has its makers' own format"),
        ({"config.json": "{}", "consolidated.00.pth": ""}, "has its makers' own format"),
        (
            {
                "adapter_config.json": '{"base_model_name_or_path": "org/base"}',
                "adapter_model.safetensors": "",
            },
            r"is an adapter \(LoRA\) of org/base, .*serve its base model with --lora-adapters",
        ),
        ({"adapter_config.json": "[", "config.json": "{}"}, r"is an adapter \(LoRA\), no model by itself"),
    ],
    ids=["gguf", "gguf and config", "original", "original and config", "lora", "lora and config"],
)
def test_a_folder_of_something_else_is_named(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(HubError, match=words):
        find_model(Source(str(tmp_path)))


def test_a_gguf_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("GGUF")
    with pytest.raises(HubError, match=r"model\.gguf lacks files that cannot be made of what it has: "):
        find_model(Source(str(tmp_path / "model.gguf"), cache=tmp_path))


@pytest.mark.parametrize(
    ("settings", "begins"), [({}, True), ({"add_bos_token": False}, False), (None, True)]
)
def test_a_sentencepiece_model_alone_is_a_tokenizer(
    checkpoint: Path, tmp_path: Path, settings: dict[str, bool] | None, begins: bool
) -> None:
    """LlamaTokenizer adds BOS unless its settings say otherwise."""
    import sentencepiece

    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "model.safetensors"):
        (old / name).write_bytes((checkpoint / name).read_bytes())
    text = (f"{word} is a word of {len(word)} letters" for word in Path(__file__).read_text().split())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text, model_prefix=str(old / "tokenizer"), vocab_size=500, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    named = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    if settings is not None:
        (old / "tokenizer_config.json").write_text(json.dumps(named | settings))
    tokenizer = Tokenizer.from_folder(find_model(Source(str(old), cache=tmp_path / "cache")))
    ids = tokenizer.encode("is a word")
    assert (ids[0] == 1) == begins
    assert tokenizer.decode(ids[int(begins) :]) == "is a word"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("other", ["adapter_model.bin", "ggml-model-q4_0.bin", "sampler.bin"])
def test_pickles_of_both_kinds_among_others(
    checkpoint: Path, tmp_path: Path, legacy: bool, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (old / name).write_bytes((checkpoint / name).read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    torch.save(tensors, old / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (old / other).write_bytes(b"ggml")
    folder = find_model(Source(str(old), cache=tmp_path / "cache"))
    assert load_file(folder / "model.safetensors").keys() == tensors.keys()


def test_a_slow_tokenizer_is_converted(checkpoint: Path, tmp_path: Path) -> None:
    """GPT-2's form: vocab.json and merges.txt. transformers says what the ids must be."""
    old = tmp_path / "slow"
    old.mkdir()
    for name in ("config.json", "model.safetensors"):
        (old / name).write_bytes((checkpoint / name).read_bytes())
    data = json.loads((checkpoint / "tokenizer.json").read_text())["model"]
    (old / "vocab.json").write_text(json.dumps(data["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["merges"]]
    (old / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    (old / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "unk_token": "<s>"}')
    folder = find_model(Source(str(old), cache=tmp_path))
    found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = transformers.AutoTokenizer.from_pretrained(old)
    text = "Deep learning, what is a violin?"
    assert found.encode(text) == expected.encode(text)
    assert not (old / "tokenizer.json").exists()


@pytest.mark.contract("6.4")
def test_download_weights(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tgi", "download-weights", NAME]
    done = subprocess.run(command, env=environment(hub[1], tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (Path(done.stdout.splitlines()[-1]) / "config.json").is_file()
    done = subprocess.run(
        [*command[:-1], "org/none"], env=environment(hub[1], tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


async def test_the_child_ends_with_its_caller(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    """Cancelled while the Hub does not answer."""
    started = threading.Event()
    stop = threading.Event()

    def hang(_handler: Hub) -> None:
        started.set()
        stop.wait(20)

    hub[0].do_GET = hang  # type: ignore[method-assign]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch_model, Source(NAME), Lifecycle(), environment(hub[1], tmp_path))
        await trio.to_thread.run_sync(started.wait, 20)
        (child,) = children_running("tgi.hub")
        nursery.cancel_scope.cancel()
    stop.set()
    assert not child.is_running()
