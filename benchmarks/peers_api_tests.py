"""API tests of vLLM and llama.cpp against a running server: which pass, which fail, and which do not apply.

    tgi serve --port 8080 &
    pip download --no-deps --no-binary :all: vllm llama-cpp-python   # and unpack both
    pip install pytest-asyncio pytest-timeout wget filelock httpx prometheus_client anthropic
    python benchmarks/peers_api_tests.py http://127.0.0.1:8080 \\
        --vllm vllm-*/tests --llama llama_cpp_python-*/vendor/llama.cpp/tools/server/tests --tokenizer MODEL

The tests are copied to a folder that is removed afterwards, with stand-ins for what starts their own server.
What needs another model, a server with other options, or the other server's own code, does not apply.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

VLLM = "entrypoints/openai", "entrypoints/serve", "entrypoints/anthropic"
"""Folders of vLLM's tests that are about the API."""
SECONDS = 60
"""Maximum time of a test."""
NOT_APPLICABLE = [
    (
        r"^TEST \S*(_vlm|vision|audio|image|video|prompt_embeds|embedding|rerank|infill)",
        "another kind of model",
    ),
    (r"^TEST \S*(lora|tensorizer|speculative|kv_keep|slot_save|ctx_shift|sleep|router)", "not offered"),
    (r"^TEST \S*(sagemaker|collective_rpc|orca|test_uds|batched|decisions|correctness)", "vLLM's own routes"),
    (
        r"^TEST \S*(test_metrics|test_proxy|mcp|tools_builtin|test_stream\.py|compat_gcp|no_ui)",
        "the peer's own",
    ),
    (r"^TEST \S*render", "a route that is not offered"),
    (
        r"^TEST \S*(real_model|test_weather|test_calc_result|test_thoughts|test_hello_world)",
        "a model's abilities",
    ),
    (r"^TEST \S*test_tokenize\.py|test_logit_bias\[True-", "llama.cpp's own form of /tokenize"),
    (r"is not supported: |may be functions only", "a field that is refused by name, see docs/fields.md"),
    (
        r"assert '(312|30|Mark|John)' in|test_reasoning_item|reasoning_tokens_|gpt_oss package"
        r"|test_function_tool_use\[|expected_arguments|forced_tool_choice|test_structured_output\.py"
        r"|\['response\.created'\]|test_simple\.py::test_max_tokens|test_anthropic_(tool_call|structured)",
        "a model's abilities",
    ),
    (r"NOT APPLICABLE: (?P<reason>.*)", ""),
    (r"No module named '(?P<reason>[^']+)", "needs a package: "),
    (
        r"(couldn't connect to|Can't load|not a valid model identifier|LocalEntryNotFound)",
        "another model's files",
    ),
    (
        r"match_regex|look like Spanish|im_start|reasoning content|reasoning deltas|reasoning start|endswith",
        "another model's text",
    ),
    (r"1024 == 8192|must be <= 1024|assert 8 == 5", "another model's length or tokenizer"),
    (r"tokenizer_info|request_id_header|test_models", "an option of vLLM"),
    (r"cannot be imported|Missing is not JSON", "a test of the other server's own code"),
    (r"startswith of str object|assert 15 == 77|'tinyllama-2'|aliases", "the peer's own names or model"),
    (
        r"has no attribute '(prompt_logprobs|reasoning)'|'prompt_token_ids' in",
        "null where we leave a key out",
    ),
    (
        r"__verbose|return_progress|timings_per_token|test_chat_completion.py::test_logit_bias",
        "the peer's own",
    ),
    (r"^TEST \S*test_context_size_exceeded", "a server with a context of 256 tokens"),
    (r"'NoneType' object has no attribute 'status_code'", "a route of llama.cpp's own"),
    (r"system_fingerprint|-native' is not None", "the build of llama.cpp"),
]
"""Expressions for name and message of a test that does not pass, with reasons why it does not apply."""

COMMON = """
import json, os, re
import pytest

RESULTS = os.environ["RESULTS"]


def tell(nodeid, outcome, message=""):
    with open(RESULTS, "a") as file:
        file.write(json.dumps([nodeid, outcome, message]) + "\\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        tell(item.nodeid, "failed", str(call.excinfo.value) or repr(call.excinfo.value))
    elif report.skipped:
        tell(item.nodeid, "skipped", str(call.excinfo.value))
    elif report.when == "call":
        tell(item.nodeid, "passed")


def pytest_collectreport(report):
    if report.failed:
        lines = [line[2:] for line in str(report.longrepr).splitlines() if line.startswith("E ")]
        tell(report.nodeid, "skipped", "cannot be imported: " + " ".join(lines[-1:]))
"""
VLLM_CONFTEST = '''
import importlib.abc, importlib.machinery, sys, types

RUNNING = False


class Missing(type):
    """Stands for anything of vLLM. Using it in a test ends the test as one that does not apply."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls() if RUNNING else cls

    def __call__(cls, *args, **kwargs):
        if RUNNING:
            pytest.skip("NOT APPLICABLE: uses vLLM's own code")
        return cls

    def __bool__(cls):
        return False

    def __or__(cls, other):
        return cls

    __ror__ = __getitem__ = __or__


class Nothing(metaclass=Missing):
    pass


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "vllm":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: known(name)
        return module

    def exec_module(self, module):
        pass


def known(name):
    if name.startswith("__") and name != "__version__":
        raise AttributeError(name)
    if name == "get_tokenizer":
        from transformers import AutoTokenizer
        return lambda *args, **kwargs: AutoTokenizer.from_pretrained(os.environ["TOKENIZER"])
    return Nothing


sys.meta_path.insert(0, Finder())


def pytest_collection_modifyitems(items):
    for item in items:
        names = {name for name in item.fixturenames if "server" in name or "client" in name}
        if not names:
            item.add_marker(pytest.mark.skip("NOT APPLICABLE: a test of vLLM's own code"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    global RUNNING
    RUNNING = True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    global RUNNING
    RUNNING = False
'''
VLLM_UTILS = '''
import os

import openai
import pytest

OPTIONS = (
    "--api-key", "--root-path", "--enable-force-include-usage", "--middleware",
    "--enable-per-request-metrics",
)
VLLM_PATH = "."


class RemoteOpenAIServer:
    """The running server."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(self, model, vllm_serve_args=(), *args, **kwargs):
        self.url_root = os.environ["URL"]
        self.host, self.port = self.url_root.removeprefix("http://").split(":")
        for option in vllm_serve_args:
            if str(option).partition("=")[0] in OPTIONS:
                pytest.skip(f"NOT APPLICABLE: a server with the option {option}")

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def url_for(self, *parts):
        return "/".join([self.url_root, *parts])

    def get_client(self, **kwargs):
        kwargs.setdefault("timeout", 60)
        return openai.OpenAI(base_url=self.url_for("v1"), api_key="x", max_retries=0, **kwargs)

    def get_async_client(self, **kwargs):
        kwargs.setdefault("timeout", 60)
        return openai.AsyncOpenAI(base_url=self.url_for("v1"), api_key="x", max_retries=0, **kwargs)

    def get_client_anthropic(self, **kwargs):
        return self._anthropic("Anthropic", **kwargs)

    def get_async_client_anthropic(self, **kwargs):
        return self._anthropic("AsyncAnthropic", **kwargs)

    def _anthropic(self, kind, **kwargs):
        import anthropic

        return getattr(anthropic, kind)(base_url=self.url_root, api_key="x", max_retries=0, **kwargs)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return [] if name.isupper() else lambda *args, **kwargs: (lambda test: test)
'''
LLAMA_CONFTEST = """
import utils

OPTIONS = (
    "api_key", "lora_files", "server_embeddings", "server_reranking", "slot_save_path", "model_draft",
    "enable_ctx_shift", "chat_template", "chat_template_file", "server_slots", "server_metrics", "mmproj_url",
    "models_dir", "no_ui", "cors_origins", "reasoning_format", "reasoning", "server_path",
)


def start(self, timeout_seconds=None):
    given = [name for name in OPTIONS if getattr(self, name, None)]
    if given:
        pytest.skip(f"NOT APPLICABLE: a server with the option {given[0]}")
    if "tinyllama" not in (self.model_alias or "tinyllama"):
        pytest.skip("NOT APPLICABLE: another model")
    self.server_host, self.server_port = os.environ["HOST"], int(os.environ["PORT"])


def refuse_other_routes(method):
    def make(self, verb, path, *args, **kwargs):
        import requests

        if path in ("/chat/completions", "/completions", "/models"):
            path = "/v1" + path
        routes = requests.get(self.make_url("/api-doc/openapi.json")).json()["paths"]
        if path.split("?")[0] not in routes and verb != "OPTIONS":
            pytest.skip(f"NOT APPLICABLE: the route {path} is llama.cpp's own")
        return method(self, verb, path, *args, **kwargs)

    return make


Server = utils.ServerProcess
Server.start, Server.stop = start, lambda self: None
Server.make_request = refuse_other_routes(Server.make_request)
Server.make_stream_request = refuse_other_routes(Server.make_stream_request)
"""


def main() -> None:
    """Run the tests, and print a table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("url")
    parser.add_argument("--vllm", type=Path, help="folder `tests` of vLLM")
    parser.add_argument("--llama", type=Path, help="folder `tools/server/tests` of llama.cpp")
    parser.add_argument("--tokenizer", help="folder of the served model")
    parser.add_argument("-k", help="run only the tests whose name contains this")
    arguments = parser.parse_args()
    url = urlsplit(arguments.url)
    environment = {
        "URL": arguments.url, "HOST": str(url.hostname), "PORT": str(url.port),
        "TOKENIZER": arguments.tokenizer or "",
    }  # fmt: skip
    for name, source, prepare in (
        ("vLLM", arguments.vllm, prepare_vllm), ("llama.cpp", arguments.llama, prepare_llama),
    ):  # fmt: skip
        if source is not None:
            with tempfile.TemporaryDirectory() as folder:
                prepare(source, Path(folder))
                show(name, run(Path(folder), environment, arguments.k))


def prepare_vllm(source: Path, folder: Path) -> None:
    """Copy vLLM's tests of the API, with stand-ins for the rest."""
    for part in VLLM:
        shutil.copytree(source / part, folder / "tests" / part)
    for path in (folder / "tests", folder / "tests" / "entrypoints"):
        (path / "__init__.py").touch()
    shutil.copy(source / "entrypoints" / "conftest.py", folder / "tests" / "entrypoints")
    (folder / "tests" / "utils.py").write_text(VLLM_UTILS)
    (folder / "conftest.py").write_text(COMMON + VLLM_CONFTEST)


def prepare_llama(source: Path, folder: Path) -> None:
    """Copy llama.cpp's tests, with a stand-in for what starts its server."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "conftest.py").write_text(COMMON + LLAMA_CONFTEST)


def run(folder: Path, environment: dict[str, str], chosen: str | None) -> dict[str, tuple[str, str]]:
    """Run the tests of a folder; return outcome and message of each."""
    results = folder / "results.jsonl"
    results.touch()
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--asyncio-mode=auto",
        f"--timeout={SECONDS}", "--timeout-method=signal", "--rootdir", str(folder), "-c", "/dev/null",
        "--continue-on-collection-errors", *(["-k", chosen] if chosen else []), str(folder),
    ]  # fmt: skip
    path = {**os.environ, **environment, "RESULTS": str(results), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=folder, env=path, check=False, stdout=subprocess.DEVNULL)
    outcomes: dict[str, tuple[str, str]] = {}
    for line in results.read_text().splitlines():
        nodeid, outcome, message = json.loads(line)
        if outcomes.get(nodeid, ("", ""))[0] != "failed":  # a test may fail and its fixtures, too
            outcomes[nodeid] = classified(nodeid, outcome, message)
    return outcomes


def classified(nodeid: str, outcome: str, message: str) -> tuple[str, str]:
    """Return whether a test has passed, failed or does not apply, with the reason."""
    if outcome == "passed":
        return outcome, ""
    line = " ".join(message.split())[:160]
    for expression, reason in NOT_APPLICABLE:
        if match := re.search(expression, f"TEST {nodeid}\n{message}"):
            return "not applicable", reason + match.groupdict().get("reason", "").strip()
    return ("not applicable" if outcome == "skipped" else "failed"), line


def show(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    """Print the table of a server's tests."""
    counts = Counter(outcome for outcome, _ in outcomes.values())
    print(f"\n{name}: {', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())}\n")
    print("| file | passed | failed | not applicable |\n| --- | ---: | ---: | ---: |")
    files = Counter((nodeid.partition("::")[0], outcome) for nodeid, (outcome, _) in outcomes.items())
    for file in sorted({file for file, _ in files}):
        numbers = [files[file, outcome] for outcome in ("passed", "failed", "not applicable")]
        print(f"| {file} | {' | '.join(map(str, numbers))} |")
    reasons = Counter(reason for outcome, reason in outcomes.values() if outcome == "not applicable")
    print("\nNot applicable, by reason:\n")
    for reason, count in reasons.most_common():
        print(f"* {count}: {reason}")
    print("\nFailed:\n")
    for nodeid, (outcome, reason) in outcomes.items():
        if outcome == "failed":
            print(f"* {nodeid}: {reason}")


if __name__ == "__main__":
    main()
