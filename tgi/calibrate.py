"""`tgi calibrate`: measures with texts of a user how great a model's numbers are, for scales in fp8.

It writes a config file and the measurements in the form of Neural Compressor, which `--quant-config` reads.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tgi.errors import TemplateError
from tgi.hub import Source, find_model
from tgi.hub_errors import HubError
from tgi.plugins import ConfigError
from tgi.plugins.lookup import find_architecture, read_config_json
from tgi.text.chat_template import ChatTemplates
from tgi.text.tokenizer import Tokenizer
from tgi.text.tokenizer_files import TokenizerError

CONFIG, MEASUREMENTS = "quant_config.json", "measured_hooks_maxabs.json"
"""Names of the files."""
_METHOD = "act_maxabs_pow2_weights_pcs_maxabs_pow2"


class DataError(Exception):
    """The texts cannot be used; the message is one line."""


def calibrate(source: Source, data: Path, output: Path, *, weights: bool, texts: int, tokens: int) -> int:
    """Measure a model with texts of `data`, write files into `output`, and return the exit code.

    `weights`: linear layers are to be in fp8 as well, not keys and values alone. At most `texts` texts are
    used, and `tokens` tokens of each.
    """
    try:
        folder = find_model(source)
        config = read_config_json(folder)
        architecture, _ = find_architecture(folder, config)
        prompts = list(read_prompts(folder, data, texts, tokens))
        if not prompts:
            raise DataError(f"{data} has no text")
        order = {"folder": str(folder), "architecture": architecture.name, "prompts": prompts}
        child = subprocess.run(
            [sys.executable, "-m", "tgi.worker.measure"],
            input=msgspec.json.encode(order),
            stdout=subprocess.PIPE,
            check=False,
        )
        if child.returncode:
            return child.returncode
        write(output, json.loads(child.stdout), weights=weights)
    except (HubError, ConfigError, TokenizerError, TemplateError, DataError, OSError) as error:
        print(f"tgi: {error}", file=sys.stderr)
        return 1
    print(output / CONFIG)
    return 0


def read_prompts(folder: Path, data: Path, texts: int, tokens: int) -> Iterator[list[int]]:
    """Yield the token ids of the first texts in a file of lines in JSON: {"text": …} or {"messages": […]}.

    Raises DataError that names the file or the line.
    """
    tokenizer, templates = Tokenizer.from_folder(folder), ChatTemplates.from_folder(folder)
    try:
        content = data.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{data} is not text in UTF-8: {error}") from error
    lines = (line for line in enumerate(content.split("\n"), 1) if line[1].strip())
    for number, line in (pair for pair, _ in zip(lines, range(texts), strict=False)):
        place = f"{data}, line {number}"
        try:
            entry: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place} is not JSON: {error}") from error
        fields = entry if isinstance(entry, dict) else {}
        text, messages = fields.get("text", fields.get("prompt")), fields.get("messages")
        if isinstance(messages, list):
            ids = tokenizer.encode(templates.render(messages, more=False), add_special_tokens=False)
        elif isinstance(text, str):
            ids = tokenizer.encode(text)
        else:
            raise DataError(f'{place} has neither "text", a string, nor "messages", a list')
        if ids:
            yield ids[:tokens]


def write(output: Path, greatest: Mapping[str, float], *, weights: bool) -> None:
    """Write the files. Layers that no text reached are left out."""
    output.mkdir(parents=True, exist_ok=True)
    nodes = {
        name: {"inputs": [[[most]]]}
        for name, most in sorted(greatest.items())
        if most > 0 and (weights or name.endswith("_cache"))
    }
    measured = {"GlobalRank": None, "LocalRank": None, "Mode": "DynamicRange", "Nodes": nodes}
    settings = {
        "method": "HOOKS",
        "mode": "QUANTIZE",
        "observer": "maxabs",
        "scale_method": _METHOD,
        "allowlist": {"types": [] if weights else ["KVCache"], "names": []},
        "blocklist": {"types": [], "names": []},
        "ignore_modules_wo_measures": True,
        "dump_stats_path": MEASUREMENTS.removesuffix("_hooks_maxabs.json"),
    }
    for name, content in ((MEASUREMENTS, measured), (CONFIG, settings)):
        (output / name).write_text(json.dumps(content, indent=2) + "\n")
