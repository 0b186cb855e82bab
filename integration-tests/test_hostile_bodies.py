"""Bodies that no client should send: each is refused in TGI's words, and the next good one served (B1)."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

NATIVE = '{"inputs":"a","parameters":{"%s":%s}}'
CHAT = '{"messages":[{"role":"user","content":"a"}],"%s":%s}'
PLAIN = '{"prompt":"a","%s":%s}'
BROKEN = ("NaN", "-Infinity", "1e400", "01", "-", "nul", '"\\ud800"', "[1,]", '{"a":1,}', "[" * 10_000)
"""No JSON, or none that serde reads."""
WRONG = {
    "whole": ("-1", "1.5", '"1"', "true", "[]", "{}", "18446744073709551616"),
    "signed": ("1.5", '"1"', "true", "[]", "{}", "18446744073709551616"),
    "number": ('"hot"', "true", "[]", "{}"),
    "flag": ("1", '"true"', "[]", "{}"),
    "texts": ("1", "true", "{}", "[1]", "[null]", "[[]]"),
}
FIELDS = {
    NATIVE: {
        "best_of": "whole", "max_new_tokens": "whole", "seed": "whole", "top_k": "whole", "truncate": "whole",
        "temperature": "number", "top_p": "number", "repetition_penalty": "number", "details": "flag",
        "watermark": "flag", "do_sample": "flag", "stop": "texts",
    },
    CHAT: {
        "max_tokens": "whole", "seed": "signed", "n": "whole", "top_logprobs": "whole", "min_tokens": "whole",
        "temperature": "number", "presence_penalty": "number", "stream": "flag", "logprobs": "flag",
        "stop": "texts", "tools": "texts",
    },
    PLAIN: {
        "max_tokens": "whole", "seed": "signed", "best_of": "whole", "frequency_penalty": "number",
        "echo": "flag", "stop": "texts", "prompt": "texts",
    },
}  # fmt: skip
PATHS = {
    "/generate": NATIVE,
    "/generate_stream": NATIVE,
    "/": NATIVE,
    "/v1/chat/completions": CHAT,
    "/v1/completions": PLAIN,
}
GOOD = {"/generate": NATIVE % ("max_new_tokens", 2), "/v1/chat/completions": CHAT % ("max_tokens", 2)}
POSTS = (
    *PATHS,
    "/invocations",
    "/vertex",
    "/tokenize",
    "/chat_tokenize",
    "/detokenize",
    "/v2/models/m/versions/1/infer",
)
DEEP = b'{"inputs":"a","prompt":"a","messages":[],"more":' + b'{"a":' * 10_000
EVERYWHERE = {
    "nothing": b"",
    "no JSON": b"not json",
    "a byte-order mark": b'\xef\xbb\xbf{"inputs":"a"}',
    "UTF-16": '{"inputs":"a"}'.encode("utf-16"),
    "no UTF-8": b'{"inputs":"\xff"}',
    "half a character": b'{"inputs":"\xc3',
    "null": b"null",
    "a number": b"1" * 100_000,
    "arrays 10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "objects 10,000 deep": DEEP + b"1" + b"}" * 10_001,
    "objects 10,000 deep without an end": DEEP,
    "too long by a byte": b'{"inputs":"%s"}' % (b"a" * (2_000_001 - 13)),
}
REFUSED = {"/generate": (
    ("stop", json.dumps(["x"] * 10_000)), ("seed", "18446744073709551616"), ("temperature", "0"),
    ("temperature", "-1"), ("top_p", "1"), ("top_k", "0"), ("max_new_tokens", "0"), ("best_of", "99"),
    ("max_new_tokens", "4294967295"), ("truncate", "0"), ("top_n_tokens", "99"), ("repetition_penalty", "0"),
    ("frequency_penalty", "3"),
    ("grammar", '{"type":"json","value":"{"}'), ("grammar", '{"type":"regex","value":"("}'),
    ("grammar", json.dumps({"type": "json", "value": '{"a":' * 100_000})),
), "/v1/chat/completions": (
    ("n", "0"), ("n", "999"), ("temperature", "-1"), ("top_logprobs", "99"), ("logit_bias", '{"x":1}'),
    ("logit_bias", '{"99999999":1}'), ("logit_bias", '{"1":101}'), ("stop", json.dumps(["x"] * 10_000)),
    ("tool_choice", '{"type":"function","function":{"name":"f"}}'), ("stop_token_ids", "[99999999]"),
)}  # fmt: skip
TEXTS = (
    "Failed to parse the request body as JSON: ",
    "Failed to deserialize the JSON body into the target type: ",
    "Failed to buffer the request body: length limit exceeded",
    "Input validation error: ",
    "Tool error: ",
)


@pytest.fixture(scope="module")
def demo(start: Any) -> Any:
    """A server that tests share."""
    server = start(model_id="", max_total_tokens=64).wait_ready()
    yield server
    server.end()


def ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, str]:
    """Status, and the words of an error."""
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    if "json" in (response.getheader("content-type") or ""):
        error = json.loads(text).get("error", "")
        text = error["message"] if isinstance(error, dict) else error
    return response.status, text


def bad_bodies() -> Iterator[tuple[str, bytes, set[int]]]:
    """Path, body, and statuses that are right for it."""
    for path, template in PATHS.items():
        for field, kind in FIELDS[template].items():
            for value in (*WRONG[kind], *BROKEN):
                if kind != "texts" or value != '"\\ud800"' or template == NATIVE:
                    yield path, (template % (field, value)).encode(), {400, 422}
        good = (template % ("seed", "1")).encode()
        for end in range(1, len(good), 3):
            yield path, good[:end], {400}
    for path in POSTS:
        for name, body in EVERYWHERE.items():
            yield path, body, {413} if name.startswith("too long") else {400, 422}
    for path, rows in REFUSED.items():
        for field, value in rows:
            yield path, (PATHS[path] % (field, value)).encode(), {400, 422}


def test_more_than_500_bad_bodies_are_refused_in_tgi_s_words(demo: Any) -> None:
    bodies = list(bad_bodies())
    assert len(bodies) > 500
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", demo.port, timeout=60)) as connection:
        for path, body, expected in bodies:
            status, text = ask(connection, path, body)
            what = f"{path} {body[:150]!r}: {status} {text[:200]}"
            assert status in expected, what
            assert text.startswith(TEXTS), what
        for path, good in GOOD.items():
            assert ask(connection, path, good.encode())[0] == 200
    assert " ERROR " not in demo.output()
    assert demo.metric("tgi_batch_current_size") == 0
