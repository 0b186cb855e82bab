"""`tgi chat`: a conversation in the terminal, and `tgi run`: one answer."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx2 as httpx
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from . import http
from .embedded import EmbeddedServer

HISTORY = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "tgi" / "chat_history"
HELP = """/new begins a new conversation, /system TEXT sets the system prompt,
/retry asks again, /quit or Ctrl-D ends. Ctrl-C stops an answer.
A line that ends in \\ goes on in the next one."""


@attrs.define
class Chat:
    """A conversation with a server."""

    client: httpx.Client
    console: Console
    fields: dict[str, Any]
    """Fields of every request, such as `temperature`."""
    system: str | None = None
    messages: list[http.Json] = attrs.field(factory=list)

    def ask(self) -> None:
        """Let the server answer the messages, show the answer as it comes, and keep it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {**self.fields, "messages": system + self.messages}
        text = thoughts = ""
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(console=self.console, refresh_per_second=12) as live,
        ):
            for event in http.stream(self.client, "v1/chat/completions", body):
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    thoughts += choice["delta"].get("reasoning_content") or ""
                live.update(Markdown(text) if text else Text(thoughts, style="dim italic"))
        if not self.console.is_terminal:
            self.console.line()  # Live ends its last line on a terminal only
        self.messages.append({"role": "assistant", "content": text})

    def take(self, line: str) -> bool:
        """Take a line of the user; return False if it ends the conversation."""
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/new":
            self.messages.clear()
        elif command == "/system":
            self.system = rest or None
        elif command == "/retry" and len(self.messages) > 1:
            del self.messages[-1]
            self.ask()
        elif line.startswith("/"):
            self.console.print(HELP, style="dim", markup=False)
        elif line.strip():
            self.messages.append({"role": "user", "content": line})
            self.ask()
        return True


def chat(
    url: str | None, options: dict[str, Any], fields: dict[str, Any], key: str | None, system: str | None
) -> int:
    """Hold a conversation with the server at a URL, or with one of our own; return the exit code."""
    console = Console()
    with connected(url, options, key, console) as client:
        model = client.get("v1/models").raise_for_status().json()["data"][0]["id"]
        console.print(f"{model}. /help lists the commands.", style="dim", markup=False)
        conversation = Chat(client, console, {"model": model, **fields}, system)
        for line in lines():
            try:
                if not conversation.take(line):
                    break
            except http.RequestError as error:
                conversation.messages.pop()
                console.print(f"tgi: {error}", style="red", markup=False)
    return 0


def run(
    prompt: str, options: dict[str, Any], fields: dict[str, Any], url: str | None, key: str | None
) -> int:
    """Print the answer to one message as it comes; return the exit code."""
    console = Console(stderr=True)
    with connected(url, options, key, console) as client, contextlib.suppress(KeyboardInterrupt):
        body = {"model": "tgi", **fields, "messages": [{"role": "user", "content": prompt}]}
        for event in http.stream(client, "v1/chat/completions", body):
            for choice in event["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
        print()
    return 0


@contextlib.contextmanager
def connected(
    url: str | None, options: dict[str, Any], key: str | None, console: Console
) -> Iterator[httpx.Client]:
    """Yield a client of the server at a URL, or of one that lives as long as the body."""
    with contextlib.ExitStack() as stack:
        if url is None:
            server = EmbeddedServer.start(options)
            stack.callback(server.close)
            with console.status("Loading the model"):
                server.wait_ready()
            transport = httpx.HTTPTransport(uds=str(server.path))
            url = "http://tgi"
        else:
            transport = httpx.HTTPTransport()
        url = url.removesuffix("/").removesuffix("/v1") + "/"
        url = url if "://" in url else f"http://{url}"
        client = httpx.Client(
            transport=transport, base_url=url, headers=http.headers(key), timeout=http.timeout()
        )
        yield stack.enter_context(client)


def lines() -> Iterator[str]:
    """Yield what the user types, with a history that is kept where Python has readline."""
    interactive = sys.stdin.isatty()
    if interactive:
        _load_history()
    while True:
        try:
            line = input("> " if interactive else "")
            while line.endswith("\\"):
                line = line[:-1] + "\n" + input("… " if interactive else "")
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt:
            print()
            continue
        yield line


def _load_history() -> None:
    try:
        import atexit
        import readline
    except ImportError:
        return
    with contextlib.suppress(OSError):
        HISTORY.parent.mkdir(parents=True, exist_ok=True)
        HISTORY.touch(mode=0o600)
        readline.read_history_file(HISTORY)
        readline.set_history_length(1000)
        atexit.register(readline.write_history_file, HISTORY)
