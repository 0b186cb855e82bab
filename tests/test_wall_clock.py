"""The wall clock may jump, as when a machine gets the right time: nothing is decided by it.

`make chaos` sets it forward and back under a running server.
"""

import ast

from .documented import ROOT

SHOWN = {
    "tgi/api/embeddings.py": "time",  # `created` of an answer
    "tgi/api/ollama.py": "now",  # `created_at`
    "tgi/api/openai/answers.py": "time",  # `created`
    "tgi/api/responses.py": "time",  # `created_at`
    "tgi/api/vllm_metrics.py": "time",  # the value of a metric of vLLM
    "tgi/text/chat_template.py": "now",  # what templates call `strftime_now`
    "tgi/tracing.py": "time_ns",  # where a span begins; durations are monotonic
}
"""Files that read the wall clock, for people or other machines to see, and by which function."""


def test_nothing_but_what_is_shown_reads_the_wall_clock() -> None:
    found = {}
    for folder in ("tgi", "adapters", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            if "tests" in path.relative_to(ROOT).parts:
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                match node:
                    case ast.Attribute(ast.Name("time"), "time" | "time_ns" as name):
                        found[str(path.relative_to(ROOT))] = name
                    case ast.Attribute(ast.Name("datetime" | "date"), "now" | "today" | "utcnow" as name):
                        found[str(path.relative_to(ROOT))] = name
                    case ast.ImportFrom("time", names) if {"time", "time_ns"} & {one.name for one in names}:
                        found[str(path.relative_to(ROOT))] = "an import by name"
    assert found == SHOWN
