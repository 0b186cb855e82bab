"""docs/clients.md lists the clients that are tried. `python -m tests.test_clients_page` writes it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "clients.md"
CLIENTS = ROOT / "integration-tests" / "clients"
AGENTS = ROOT / "integration-tests" / "agents"
LIBRARIES = {
    "test_anthropic": "anthropic",
    "test_guidellm.py": "guidellm",
    "test_langchain.py": "langchain-huggingface",
    "test_litellm.py": "litellm",
    "test_llama_index.py": "llama-index-llms-openai-like",
    "test_lm_eval.py": "lm_eval",
    "test_ollama": "ollama",
    "test_openai.py": "openai",
    "test_page.py": "playwright",
    "test_responses": "openai",
    "test_routers.py": "vllm-router, sglang-router",
    "test_text_generation.py": "text-generation",
}
"""Distributions of a test, or of all tests of a file; other tests use what the server has anyway."""
HEAD = """# Clients

Each library below talks to a server of the demo model in a test. Greedy answers must be those of transformers
with the same weights, to the letter, whole and streamed. `make test-slow ARGS=integration-tests/clients` runs
the tests of the first table that `make test` leaves out; `make test-agents` installs and tries the second.
"""


def versions() -> dict[str, str]:
    """Versions by distribution, of the files that `make` installs them from."""
    found = {}
    for file in (ROOT / "requirements-dev.txt", CLIENTS / "requirements.txt", AGENTS / "requirements.txt"):
        for line in file.read_text("utf-8").splitlines():
            if line and not line.startswith("#"):
                wanted = Requirement(line)
                found[wanted.name] = str(wanted.specifier).removeprefix("==")
    return found


def functions(path: Path) -> tuple[str, dict[str, str]]:
    """The first line of a file's docstring, and docstrings of its functions by name."""
    tree = ast.parse(path.read_text("utf-8"))
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    about = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
    return about, {node.name: ast.get_docstring(node) or "" for node in defined}


def libraries() -> Iterator[tuple[str, str, str]]:
    """Yield what is tried, with which distribution, and the names of the tests."""
    for path in sorted(CLIENTS.glob("test_*.py")):
        about, defined = functions(path)
        tests: dict[str, list[str]] = {}
        for name in defined:
            if name.startswith("test_"):
                used = LIBRARIES.get(name, LIBRARIES.get(path.name, ""))
                tests.setdefault(used, []).append(name.removeprefix("test_").replace("_", " "))
        for used, names in tests.items():
            yield about, used, "; ".join(names)


def page() -> str:
    known = versions()
    lines = ["## Libraries", "", "| what is tried | library | tests |", "| --- | --- | --- |"]
    for about, name, tests in libraries():
        used = ", ".join(f"{one} {known[one]}" for one in name.split(", ") if one)
        lines.append(f"| {about} | {used} | {tests} |")
    lines += ["", "## Frameworks", "", "| library | what is tried |", "| --- | --- |"]
    for function, about in functions(AGENTS / "use_agents.py")[1].items():
        (name,) = (one for one in known if one.startswith(function.replace("_", "-")))
        lines.append(f"| {name} {known[name]} | {about} |")
    return HEAD + "\n" + "\n".join(lines) + "\n"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "python -m tests.test_clients_page"


def test_every_client_is_in_the_page() -> None:
    for folder in (CLIENTS, AGENTS):
        pinned = (folder / "requirements.txt").read_text("utf-8")
        for name in re.findall(r"(?m)^([\w-]+)(?:\[\w+\])?==", pinned):
            assert re.search(rf"[|,] {name} ", PAGE.read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
