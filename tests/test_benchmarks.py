"""The parts of benchmarks/serve.py: checkpoints are complete, prompts exact, streams read; and all of it."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from transformers import AutoModelForCausalLM, AutoTokenizer

from tgi.config import DEMO_MODEL

from .benchmark_scripts import BENCHMARKS, load

BIN = Path(sys.executable).parent


client = load("client")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    load("make_checkpoint").make_checkpoint("tiny", folder)
    return folder


@pytest.mark.slow
def test_checkpoint_gives_answers_of_the_asked_length(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert len(tokenizer) == model.config.vocab_size
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert chat["input_ids"][0] == tokenizer.bos_token_id
    for word in ("import", "class", "self", "return"):
        prompt = tokenizer(word, return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=64, do_sample=False)
        assert output.shape[1] == prompt["input_ids"].shape[1] + 64


def test_prompts_have_the_exact_length_and_differ(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompts = client.Prompts(checkpoint)
    for name, length, shared in (("a1", 128, 0), ("b4", 1024, 0), ("c4", 1016, 1000)):
        workload = client.Workload.parse(name)
        one, other = (tokenizer(prompts.make(workload, key))["input_ids"] for key in ("one", "other"))
        assert len(one) == len(other) == length
        same = next(i for i in range(length) if one[i] != other[i])
        assert max(shared, 1) <= same < max(shared, 1) + 3


TGI = [
    b'data:{"index":1,"token":{"id":5,"text":"a"},"generated_text":null,"details":null}\n\n',
    b'data:{"index":2,"token":{"id":6,"text":""},"generated_text":null,"det',
    b'ails":null}\n\ndata:{"index":3,"token":{"id":7,"text":"b"},"generated_text":"ab","details":null}\n\n',
]
TGI_ERROR = [TGI[0], b'data:{"error":"Request failed","error_type":"generation"}\n\n']
OPENAI = [
    b'data: {"id":"1","choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n',
    b'data: {"id":"1","choices":[{"index":0,"text":"b","finish_reason":"length"}],"usage":null}\r\n\r\n',
    b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\ndata: [DONE]\n\n',
]


class Canned(BaseHTTPRequestHandler):
    """Streams of real servers, in chunks that break where they like."""

    protocol_version = "HTTP/1.1"
    streams: ClassVar[dict[str, list[bytes]]] = {"/generate_stream": TGI, "/v1/completions": OPENAI}
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in [*self.streams[self.path], b""]:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Canned, "streams", dict(Canned.streams))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_reads_the_streams_of_both_protocols(url: str) -> None:
    tgi = trio.run(client.ask, client.Target(url, None), "hello", 3)
    assert (tgi.error, tgi.tokens, len(tgi.times)) == ("", 3, 3)
    assert Canned.asked[-1] == {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
    openai = trio.run(client.ask, client.Target(url, "name"), "hello", 3)
    assert (openai.error, openai.tokens, len(openai.times)) == ("", 3, 2)
    assert openai.started < openai.times[0] <= openai.times[1]


def test_what_went_wrong_is_an_error(url: str) -> None:
    assert trio.run(client.ask, client.Target(url, None), "", 4).error == "3 instead of 4 tokens"
    Canned.streams["/generate_stream"] = TGI_ERROR
    assert "Request failed" in trio.run(client.ask, client.Target(url, None), "", 4).error
    Canned.streams["/generate_stream"] = [b"data:not JSON\n\n"]
    assert "Decode" in trio.run(client.ask, client.Target(url, None), "", 4).error
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    refused = trio.run(client.ask, client.Target(f"http://127.0.0.1:{port}", None), "", 4)
    assert "OSError" in refused.error


@pytest.mark.slow
def test_measures_a_server_that_it_starts(checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    start = f"{BIN}/tgi serve --model-id {checkpoint} --hostname 127.0.0.1 --port {port}"
    start += " --max-batch-total-tokens 8192"
    results = tmp_path / "results.jsonl"
    command = [sys.executable, str(BENCHMARKS / "serve.py"), str(checkpoint), "--json", str(results)]
    command += ["--requests", "1", "--repeats", "2", "--workloads", "a2", "c2"]
    command += ["--server", "tgi", f"http://127.0.0.1:{port}", start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    runs = [row for row in rows if "workload" in row]
    assert [(run["workload"], run["repeat"], run["errors"]) for run in runs] == [
        ("a2", 0, 0),
        ("c2", 0, 0),
        ("a2", 1, 0),
        ("c2", 1, 0),
    ]
    figures = ("tokens_per_second", "ttft_p50", "gap_p50", "gap_p99", "server_cores")
    assert all(run[figure] > 0 for run in runs for figure in figures)
    assert [row["ready_seconds"] > 0 for row in rows if "workload" not in row] == [True, True]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.slow
def test_tells_what_a_grammar_costs(capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(load("constrained").measure, DEMO_MODEL, 2, 12, "float32", 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["grammar"] * 2 + ["rows", "-- warmed up"] + [
        "rows"
    ] * 3
    assert "constrained" in lines[-2]
    assert "free" in lines[-2]


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["chat", "long-prompt", "uniform"])
def test_our_buckets_pad_less_with_half_the_graphs(workload: str) -> None:
    """Than the best of the other strategies."""
    buckets = load("buckets")
    others = [buckets.measure(workload, "gaudi2", *other, 1) for other in buckets.others("gaudi2")]
    best = min(others, key=lambda figures: figures.waste)
    seen = buckets.serve(workload, "gaudi2", buckets.buckets_of("gaudi2"), 1, seed=2).counts.counts
    for graphs, counts in ((best.graphs // 2, {}), (122, seen)):
        chosen = buckets.buckets_of("gaudi2", max_graphs=graphs, counts=counts)
        ours = buckets.measure(workload, "gaudi2", "optimal", chosen, 1)
        assert ours.graphs <= best.graphs / 2
        assert ours.waste <= best.waste
        assert ours.rate >= best.rate


def test_a_peers_test_passes_or_fails_or_does_not_apply() -> None:
    classified = load("peers_api_tests").classified
    assert classified("a.py::test_a", "passed", "") == ("passed", "")
    assert classified("a.py::test_a", "failed", "assert 1 ==\n  2") == ("failed", "assert 1 == 2")
    for nodeid, outcome, message, reason in [
        ("unit/test_lora.py::test_a", "failed", "x", "not offered"),
        ("a.py::test_a", "skipped", "NOT APPLICABLE: another model", "another model"),
        ("a.py::test_a", "failed", "No module named 'x'", "needs a package: x"),
        (
            "a.py::test_a",
            "failed",
            "`lora` is not supported: …",
            "a field that is refused by name, see docs/fields.md",
        ),
        ("a.py::test_a", "skipped", "no GPU", "no GPU"),
    ]:
        assert classified(nodeid, outcome, message) == ("not applicable", reason)
