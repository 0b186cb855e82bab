"""Chat templates in the styles of the well-known families, written for the tests.

What matters is what such templates make use of: blocks over many lines, macros, namespaces, loop controls,
filters, tests, methods of strings and objects, refusals, dates, and JSON of tools. Each is a file beside this
one.
"""

from pathlib import Path

TEMPLATES = {
    file.stem: file.read_bytes().decode()
    for file in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}
TEMPLATES["mistral-nemo"] = (
    TEMPLATES["mistral-v3"]
    .replace("[AVAILABLE_TOOLS] [", "[AVAILABLE_TOOLS][")
    .replace("[TOOL_CALLS] [", "[TOOL_CALLS][")
)
