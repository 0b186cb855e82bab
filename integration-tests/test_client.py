"""`tgi.LLM`, and the commands that talk to a server: `tgi run`, `chat`, `run-batch`, `bench`, `env`."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.own_processes import children_running
from tgi import LLM, SamplingParams
from tgi.client.embedded import StartError
from tgi.client.http import RequestError

QUESTION = "What is a violin?"
ANSWER = "A violin is a bowed stringed instrument that is the highest member of the violin family."
"""What the README's model answers in a chat, greedily."""


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as made:
        yield made


@pytest.fixture(scope="module")
def url(start: Callable[..., Any]) -> str:
    return f"http://127.0.0.1:{start(model_id='').wait_ready().port}"


def tgi(*arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tgi", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


def test_texts_come_in_the_order_of_prompts_and_as_in_chats(llm: LLM) -> None:
    prompts = [f"What is a {word}?" for word in ("lute", "viola", "drum")]
    texts = llm.generate(prompts, SamplingParams(temperature=0), max_tokens=12)
    assert texts == [llm.generate(prompt, temperature=0, max_tokens=12)[0] for prompt in prompts]
    assert len(set(texts)) == 3
    assert llm.chat(QUESTION, temperature=0)["content"] == ANSWER
    (whole,) = llm.complete(QUESTION, temperature=0, max_tokens=3, logprobs=1)
    assert len(whole["choices"][0]["logprobs"]["tokens"]) == whole["usage"]["completion_tokens"] == 3


def test_streams_under_each_kind_of_loop(llm: LLM) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    pieces = list(llm.stream(messages, temperature=0))
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 10

    async def collect() -> list[str]:
        return [piece async for piece in llm.stream_async(messages, temperature=0)]

    assert trio.run(collect) == asyncio.run(collect()) == pieces


def test_refusals_are_errors_and_change_nothing(llm: LLM) -> None:
    with pytest.raises(RequestError, match="temperature") as caught:
        llm.generate("a", temperature=-1)
    assert caught.value.status == 400
    with pytest.raises(TypeError, match=r"no field 'max_token'; did you mean 'max_tokens'\?"):
        llm.generate("a", max_token=3)
    with pytest.raises(TypeError, match=r"no field 'nonsense'$"):
        next(llm.stream([{"role": "user", "content": "a"}], SamplingParams(nonsense=3)))
    assert llm.chat(QUESTION, temperature=0)["content"] == ANSWER


def test_a_model_that_cannot_be_served_says_why_and_leaves_nothing() -> None:
    with pytest.raises(StartError, match="there is no folder /nowhere"):
        LLM("/nowhere")
    assert not children_running("/nowhere")
    with pytest.raises(StartError, match=r"^Unknown option: --num-shards. Did you mean --num-shard\?"):
        LLM(num_shards=2)


def test_no_engine_outlives_its_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, tgi\nllm = tgi.LLM()\nprint(llm._server.process.pid)\nos._exit(1)\n")
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    process = psutil.Process(int(ended.stdout)) if psutil.pid_exists(int(ended.stdout)) else None
    if process is not None:
        process.wait(20)


def test_run_and_chat_in_the_terminal(url: str) -> None:
    assert tgi("run", QUESTION, "--url", url, "--temperature", "0").stdout == f"{ANSWER}\n"
    lines = f"{QUESTION}\n/system Be brief.\n/nonsense\n/new\n{QUESTION}\n/quit\nnever\n"
    talk = tgi("chat", f"{url}/v1", "--temperature", "0", given=lines)
    assert (talk.returncode, talk.stderr) == (0, "")
    words = " ".join(talk.stdout.split())
    assert words.startswith("tgi-demo. /help lists the commands.")
    assert ANSWER in words
    assert words.count("/retry asks again") == 1
    assert "\n/new begins" in talk.stdout
    refused = tgi("chat", "http://127.0.0.1:1")
    assert refused.returncode == 1
    assert refused.stderr.startswith("tgi: no server answers at http://127.0.0.1:1/: ")
    assert len(refused.stderr.splitlines()) == 1


def test_a_batch_is_answered_in_order_with_its_errors(url: str, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    requests = [
        {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "wrong", "method": "POST", "url": "/v1/completions", "body": {"prompt": []}},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, requests)) + "\n")
    ended = tgi("run-batch", source, target, "--url", url)
    assert ended.returncode == 1
    assert "1 of 2 requests failed" in ended.stderr
    good, bad = map(json.loads, target.read_text().splitlines())
    assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("chat", None, 200)
    assert good["response"]["body"]["choices"][0]["message"]["content"] == ANSWER
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("wrong", 400)
    assert bad["error"]["message"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: not JSON"),
        ("[]", 'line 2: expected an object with "custom_id", "url" and "body"'),
        ('{"url": "/v1/embeddings", "body": {}}', 'line 2: "url" must be one of'),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}}', "line 2: \"custom_id\" 'a' comes twice"),
    ],
)
def test_a_file_that_is_no_batch_is_refused_by_its_line(line: str, reason: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"custom_id": "a", "url": "/v1/completions", "body": {}}\n' + line)
    ended = tgi("run-batch", source, tmp_path / "out.jsonl")
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_benchmark_counts_what_was_asked_for(url: str, tmp_path: Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    load = ["--concurrency", "1", "3", "--requests", "6", "--output-tokens", "5", "--input-words", "10"]
    ended = tgi("bench", url, *load, "--json", figures, "--plot", picture)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "3 at once" in ended.stdout
    for level in json.loads(figures.read_text())["levels"]:
        assert (level["requests"], level["failed"]) == (6, 0)
        assert level["output_tokens_per_s"] == pytest.approx(5 * level["requests_per_s"])
        assert 0 < level["first_ms_p50"] <= level["first_ms_p99"] <= level["total_ms_p99"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    for option, file, reason in (
        ("--plot", "picture.bmp", "the name must end in .png, .svg, .pdf"),
        ("--json", "missing/figures.json", "there is no folder"),
    ):
        refused = tgi("bench", url, option, tmp_path / file)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert reason in refused.stderr
    arriving = tgi("bench", url, "--rate", "50", "--requests", "4", "--output-tokens", "2")
    assert "50/s" in arriving.stdout


def test_env_names_versions_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGI_API_KEY", "hush")
    monkeypatch.setenv("TGI_SOMETHING", "loud")
    text = tgi("env").stdout
    assert "torch: " in text
    assert "TGI_SOMETHING: loud" in text
    assert "TGI_API_KEY: (set)" in text
    assert "hush" not in text
