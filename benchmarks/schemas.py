"""How much of JSON Schema the grammars enforce: schemas with valid and invalid instances, as in MaskBench.

    git clone --depth 1 https://github.com/guidance-ai/jsonschemabench /tmp/jsb
    python benchmarks/schemas.py /tmp/jsb/maskbench/data
    python benchmarks/schemas.py /tmp/jsb/maskbench/data --list refused --json results.jsonl

FOLDER has a JSON file for each schema: `{"schema": …, "tests": [{"valid": true, "data": …}, …]}`. A schema is
compiled, and its instances are followed, in a process with limits like those of the server:

*passed*     every valid instance is accepted, no invalid one is
*refused*    the schema is not compiled
*rejected*   a valid instance is not accepted
*accepted*   an invalid instance is accepted, with a remark that says that something is not enforced
*silent*     an invalid instance is accepted without a remark
"""

import argparse
import json
import os
import random
import re
import resource
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from tgi.config import DEMO_MODEL
from tgi.text.grammar import GrammarCompiler, GrammarError, GrammarSpec
from tgi.text.tokenizer import Tokenizer

OUTCOMES = ("passed", "refused", "rejected", "accepted", "silent")
LISTED = 60
"""Maximum number of lines of a list."""
SECONDS, MEMORY, STACK = 2, 256 << 20, 1 << 20


def main() -> None:
    """Print how many schemas have each outcome."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sample", type=int, help="number of schemas, drawn with a fixed seed; default: all")
    parser.add_argument("--lenient", action="store_true", help='as with "strict": false')
    parser.add_argument("--list", choices=OUTCOMES[1:], help="name schemas of an outcome, with messages")
    parser.add_argument("--json", type=Path, help="write a JSON line for each schema")
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.rglob("*.json"))
    if arguments.sample is not None:
        paths = random.Random(0).sample(paths, min(arguments.sample, len(paths)))
    compiler = GrammarCompiler(Tokenizer.from_folder(DEMO_MODEL), 4096)
    compiler.load()
    results = []
    for path in paths:
        case = json.loads(path.read_text())
        if case.get("tests"):
            results.append({"file": path.name, **isolated(compiler, case, arguments.lenient)})
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    count = Counter(result["outcome"] for result in results)
    for outcome in OUTCOMES:
        print(f"{outcome:9} {count[outcome]:6} {100 * count[outcome] / max(1, len(results)):6.2f} %")
    if arguments.list:
        show([result for result in results if result["outcome"] == arguments.list])


def show(results: list[dict[str, Any]]) -> None:
    """Print the kinds of messages, most frequent first, each with the name of a schema."""
    kinds = Counter(kind(result) for result in results)
    example = {kind(result): result["file"] for result in results}
    for message, number in kinds.most_common(LISTED):
        print(f"{number:5} {message}   ({example[message]})")


def kind(result: dict[str, Any]) -> str:
    """Return a message without what is particular to the schema."""
    return re.sub(r"\d+", "N", re.sub(r"^.*?: ", "", result["message"]))[:100]


def isolated(compiler: GrammarCompiler, case: dict[str, Any], lenient: bool) -> dict[str, Any]:
    """Return what becomes of a schema, found in a fork of this process."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_STACK, (STACK, STACK))
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            os.write(send, json.dumps(follow(compiler, case, lenient)).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"outcome": "refused", "message": "too large or too slow"}


def follow(compiler: GrammarCompiler, case: dict[str, Any], lenient: bool) -> dict[str, Any]:
    """Compile a schema and follow its instances."""
    options = {"lenient": True} if lenient else {}
    try:
        matcher = compiler.compile(GrammarSpec("json", json.dumps(case["schema"]), **options))
    except GrammarError as error:
        return {"outcome": "refused", "message": str(error)}
    remarks = "; ".join(getattr(matcher, "remarks", ()))
    for test in case["tests"]:
        text = json.dumps(test["data"], ensure_ascii=False, separators=(",", ":"))
        if accepts(compiler, matcher, text) != test["valid"]:
            outcome = "rejected" if test["valid"] else "accepted" if remarks else "silent"
            return {
                "outcome": outcome,
                "message": remarks or test.get("description", ""),
                "instance": text[:2000],
            }
    return {"outcome": "passed", "message": remarks}


def accepts(compiler: GrammarCompiler, matcher: Any, text: str) -> bool:
    """Return whether a matcher takes a whole text. No masks are computed on the way, to save time."""
    core = matcher.fork()._core
    tokens = compiler._tokenizer.encode(text, add_special_tokens=False)
    return bool(core.consume_tokens(tokens)) and core.is_accepting()


if __name__ == "__main__":
    main()
