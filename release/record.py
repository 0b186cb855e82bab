"""Record the first hour of three users: `python release/record.py laptop`, or the name of another recording.

Each step is a command of the documentation, run in an empty folder as it stands there. What it prints becomes
docs/recordings/NAME.md. The server of `laptop` is a fresh clone, installed by `make run`; the others use the
environment that runs this program.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT / "docs" / "recordings"
START_SECONDS = 1800
READY = "Connected"


@attrs.frozen
class Step:
    """A command of a page of the documentation, or a program in Python there."""

    page: str
    """Page, below the repository's root."""
    begins: str
    """First words of the command, or a line of the program."""
    note: str = ""
    """Sentence before it."""
    serves: bool = False
    """Whether it is a server, which runs until the end."""
    is_program: bool = False
    given: str = ""
    """Lines that the user types."""
    instead: Mapping[str, str] = attrs.field(factory=dict)
    """Words of the page, and what stands for them here."""
    not_here: str = ""
    """Reason why it is not run."""
    lines: int = 20
    """Maximum lines of output that are shown, from both ends."""

    def text(self) -> str:
        """Return what is run, as it stands in the page. Raises ValueError if it does not."""
        blocks = list(code_blocks((ROOT / self.page).read_text("utf-8")))
        if self.is_program:
            found = next((block for block in blocks if self.begins in block), None)
        else:
            found = next(
                (one for block in blocks for one in commands(block) if one.startswith(self.begins)), None
            )
        if found is None:
            raise ValueError(f"{self.page} does not have {self.begins!r}")
        for words, here in self.instead.items():
            found = found.replace(words, here)
        return found


def code_blocks(text: str) -> Iterator[str]:
    """Yield the blocks of code of a page, without their indentation or fences."""
    yield from re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
    for block in re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE):
        yield re.sub(r"(?m)^    ", "", block).strip() + "\n"


def commands(block: str) -> Iterator[str]:
    """Yield the commands of a block, of one or several lines each, without comments at their ends."""
    lines: list[str] = []
    for line in re.sub(r"(?m)  +# .*$", "", block).splitlines():
        lines.append(line)
        text = "\n".join(lines)
        read = subprocess.run(["bash", "-n", "-c", text], capture_output=True, check=False)
        if not (read.stderr or read.returncode or line.endswith("\\")):
            yield text
            lines = []


README = "README.md"
GAUDI = "docs/from-tgi-gaudi.md"
VLLM = "docs/from-vllm.md"
KUBERNETES = "docs/kubernetes.md"
LOAD = "Other programs kept the two cores busy."
CLONE = "git clone https://… tgi && cd tgi"
"""The one command that no page has."""
STEPS: Mapping[str, Sequence[Step]] = {
    "laptop": (
        Step(README, "make run", serves=True),
        Step(README, "curl localhost:8080/generate"),
        Step(README, ".venv/bin/tgi run "),
        Step(README, ".venv/bin/tgi chat ", given="What is a violin?\nAnd a drum?\n/help\n"),
        Step(README, "echo '{\"custom_id"),
        Step(README, ".venv/bin/tgi run-batch "),
        Step(README, "cat answers.jsonl"),
        Step(README, ".venv/bin/pip install "),
        Step(README, ".venv/bin/tgi bench "),
        Step(README, "from tgi import LLM", is_program=True, instead={'"org/name", ': ""}),
        Step(README, "from openai import OpenAI", is_program=True),
    ),
    "tgi-on-gaudi": (
        Step(GAUDI, "docker run", not_here="this machine has no Docker daemon and no card"),
        Step(
            GAUDI,
            "tgi plan ",
            instead={"meta-llama/Llama-3.1-8B-Instruct": "./Llama-3.1-8B-Instruct"},
            note="Without a network, a folder with the model's `config.json` stands for its name on the Hub.",
            lines=60,
        ),
        Step(GAUDI, "MAX_TOTAL_TOKENS=", serves=True, lines=60),
        Step(GAUDI, "curl localhost:8080/generate"),
        Step(GAUDI, "curl -s localhost:8080/info"),
        Step(GAUDI, "curl -s localhost:8080/metrics"),
        Step(
            GAUDI,
            "tgi doctor ",
            note="On a machine without a card, the doctor says what is missing:",
            lines=60,
        ),
    ),
    "vllm-on-kubernetes": (
        Step(VLLM, "cat > vllm.yaml"),
        Step(VLLM, "tgi serve --config", serves=True, lines=60),
        Step(VLLM, "curl -s localhost:8000/v1/models"),
        Step(VLLM, "curl -s localhost:8000/v1/chat/completions"),
        Step(VLLM, "curl -s localhost:8000/v1/completions"),
        Step(VLLM, "curl -s localhost:8000/metrics"),
        Step(VLLM, "tgi bench "),
        Step(KUBERNETES, "kubectl create secret generic tgi-key", not_here="this machine has no cluster"),
        Step(
            KUBERNETES,
            "helm install ",
            not_here="this machine has no cluster: [what was checked](../kubernetes.md#checked-so-far)",
        ),
    ),
}
HEADS = {
    "laptop": "A laptop, from nothing to a chat",
    "tgi-on-gaudi": "From TGI on Gaudi, with a simulated card",
    "vllm-on-kubernetes": "From vLLM on Kubernetes",
}


@attrs.define
class Recorder:
    """Runs the steps of a recording in a folder."""

    folder: Path
    environment: Mapping[str, str]
    began: float = attrs.field(factory=time.monotonic)
    servers: list["subprocess.Popen[bytes]"] = attrs.field(factory=list)

    def record(self, step: Step) -> str:
        """Return the part of the page that shows a step."""
        text = step.text()
        lead = f"{step.note}\n\n" if step.note else ""
        if step.not_here:
            return f"{lead}```console\n$ {text}\n```\n\nNot run: {step.not_here}.\n"
        begin = time.monotonic()
        shown = f"```python\n{text}```\n\n```console\n" if step.is_program else f"```console\n$ {text}\n"
        output = self._serve(text, step.lines) if step.serves else self._run(step, text)
        seconds = time.monotonic() - begin
        return f"{lead}{shown}{output}```\n\n{seconds:.1f} s; {self._minutes()} since the beginning.\n"

    def _minutes(self) -> str:
        seconds = round(time.monotonic() - self.began)
        return f"{seconds // 60} min {seconds % 60} s"

    def _run(self, step: Step, text: str) -> str:
        command = [self._python(), "-c", text] if step.is_program else ["bash", "-c", text]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            input=step.given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_SECONDS,
        )
        code = f"[exit code {done.returncode}]\n" if done.returncode else ""
        return self._shown(done.stdout, step.lines) + code

    def _python(self) -> str:
        own = self.folder / ".venv" / "bin" / "python"
        return str(own) if own.exists() else sys.executable

    def _serve(self, text: str, lines: int) -> str:
        log = self.folder.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", text],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.servers.append(process)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and READY not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        if READY not in log.read_text():
            raise RuntimeError(f"{text} does not become ready: {log.read_text()}")
        return self._shown(log.read_text(), lines)

    def _shown(self, output: str, lines: int) -> str:
        """Return what a terminal would show, without colours and local paths, and cut in the middle."""
        output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
        found = [line.rpartition("\r")[2].rstrip() for line in output.replace("\r\n", "\n").splitlines()]
        found = [line.replace(str(self.folder), "~/tgi") for line in found if line]
        if len(found) > lines:
            half = lines // 2
            found = [*found[:half], f"[… {len(found) - 2 * half} lines]", *found[-half:]]
        return "".join(f"{line}\n" for line in found)

    def end(self) -> None:
        """End the servers."""
        for process in self.servers:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=120)


def page(name: str, folder: Path) -> str:
    """Record, and return the page."""
    # curl and pip would tell their progress, and pip where packages come from.
    environment = {
        **os.environ,
        "COLUMNS": "100",
        "TERM": "dumb",
        "CURL_HOME": str(folder.parent),
        "PIP_QUIET": "2",
    }
    (folder.parent / ".curlrc").write_text("silent\nshow-error\n", "utf-8")
    parts = []
    if name == "laptop":
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        parts.append(f"```console\n$ {CLONE}\n```\n")
    else:
        sys.path.append(str(ROOT / "benchmarks"))
        from make_checkpoint import COMMON, SHAPES

        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        (folder / "Llama-3.1-8B-Instruct").mkdir(parents=True)
        (folder / "Llama-3.1-8B-Instruct" / "config.json").write_text(json.dumps(COMMON | SHAPES["llama-8b"]))
    recorder = Recorder(folder, environment)
    try:
        parts += [recorder.record(step) for step in STEPS[name]]
    finally:
        recorder.end()
    day = time.strftime("%-d %B %Y", time.gmtime())
    head = f"# {HEADS[name]}\n\nRecorded on {day} by `python release/record.py {name}`. {LOAD}\n"
    return head + "\n" + "\n".join(parts)


def main(name: str) -> None:
    """Record, and write the page."""
    place = Path(tempfile.mkdtemp(prefix="recording-"))
    try:
        text = page(name, place / "tgi")
        RECORDINGS.mkdir(exist_ok=True)
        (RECORDINGS / f"{name}.md").write_text(text, "utf-8")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    main(sys.argv[1])
