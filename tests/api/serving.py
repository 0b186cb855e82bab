"""A server on a real port, with a fake executor, and a client that sees the bytes."""

import functools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import h11
import numpy as np
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tgi.api import transport
from tgi.api.app import create_app
from tgi.api.grammars import Grammars
from tgi.api.service import Embedder, Engine, ModelInfo, Service
from tgi.config import Options
from tgi.lifecycle import Lifecycle, Phase
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.pooler import PooledText
from tgi.protocol import NO_LORAS, LoraSlots
from tgi.protocol.pooling import Pooling
from tgi.scheduler import Buckets, Router, Scheduler
from tgi.scheduler.loras import Loras
from tgi.testing.builders import make_allocator
from tgi.testing.fake_executor import FakeExecutor, Script, counting
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarCompiler
from tgi.text.tokenizer import Tokenizer

BLOCKS = 256
LIMITS = Limits(
    max_input_tokens=63,
    max_total_tokens=64,
    max_batch_size=8,
    max_batch_prefill_tokens=64,
    max_concurrent_requests=8,
)
INFO = ModelInfo(
    model_id="some/model",
    served_name="some/model",
    sha="0" * 40,
    pipeline_tag=None,
    dtype="float32",
    device="sim",
    vocab_size=1000,
)
BOS, EOS = 0, 1
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A chat template that knows nothing of tools."""


@functools.cache
def make_tokenizer(bos: bool = True) -> Tokenizer:
    """Byte-level BPE: with `bos`, <s> before each text; 0 and 1 are special, all others are text."""
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        ["Hello world, what is deep learning?"],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Tokenizer(core, [], [EOS])


def saying(text: str, then: int = EOS) -> Script:
    """A model that says this text, then always one token."""
    ids = make_tokenizer().encode(text, add_special_tokens=False)
    return lambda _params, draw: ids[draw] if draw < len(ids) else then


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool
    """The server closed the connection afterwards, because it was asked to."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, framed as R1.80 says."""
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == ""
        assert all(block.startswith("data: {") and "\n" not in block for block in blocks)
        return [json.loads(block.removeprefix("data: ")) for block in blocks]


@attrs.define
class Server:
    """A running server; `ask` opens a connection for each request."""

    port: int
    service: Service
    executor: FakeExecutor

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """`body` is sent as JSON unless it is bytes; HEAD has none."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"Host": "x", "Connection": "close", **(headers or {})}
        if body is not None:
            sent = {"Content-Type": "application/json", "Content-Length": str(len(data)), **sent}
        connection = h11.Connection(h11.CLIENT)
        stream = await self.connect()
        async with stream:
            request = h11.Request(method=method, target=path, headers=list(sent.items()))
            output = connection.send(request) + connection.send(h11.Data(data=data)) if data else None
            output = output or connection.send(request)
            await stream.send_all(output + connection.send(h11.EndOfMessage()))
            return await _read_answer(connection, stream)

    async def generate(
        self, parameters: dict[str, Any], inputs: str = "Hello", path: str = "/generate"
    ) -> Answer:
        return await self.ask("POST", path, {"inputs": inputs, "parameters": parameters})

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def metrics(self) -> str:
        return (await self.ask("GET", "/metrics")).body.decode()


async def _read_answer(connection: h11.Connection, stream: trio.SocketStream) -> Answer:
    status, headers, body = 0, {}, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            raise AssertionError(event)
    with trio.move_on_after(5):
        return Answer(status, headers, body, closed=await stream.receive_some(1) == b"")
    return Answer(status, headers, body, closed=False)


class FakePooler:
    """Gives a text (length, first token, 0, 1), a pair its length less 6, or `logit`; keeps its texts."""

    def __init__(self, ranks: bool) -> None:
        self.ranks = ranks
        self.size = 1 if ranks else 4
        self.seen: list[PooledText] = []
        self.seconds = 0.0
        self.logit: float | None = None

    async def pool(self, texts: Sequence[PooledText]) -> Any:
        self.seen.extend(texts)
        await trio.sleep(self.seconds)
        if self.ranks:
            return np.array(
                [[len(one.ids) - 6 if self.logit is None else self.logit] for one in texts], np.float32
            )
        return np.array([[len(one.ids), one.ids[0], 0, 1] for one in texts], np.float32)

    def fail_all(self, _error: object) -> None:
        pass


@asynccontextmanager
async def serving(
    script: Script | None = None,
    *,
    limits: Limits = LIMITS,
    step_seconds: float = 0.0,
    options: Options | None = None,
    bos: bool = True,
    info: ModelInfo = INFO,
    phase: Phase = Phase.READY,
    keep_alive: float = 5.0,
    template: str | None = TEMPLATE,
    pooling: Pooling | None = None,
    loras: LoraSlots = NO_LORAS,
) -> AsyncIterator[Server]:
    """A server with this model, ready unless another phase is given, with the LoRA adapter "sql" if any.

    `pooling` makes it give vectors.
    """
    metrics = Metrics(limits.max_input_tokens, limits.max_total_tokens)
    executor = FakeExecutor(script or counting(290), step_seconds)
    allocator = make_allocator(limits, BLOCKS)
    scheduler = Scheduler(executor, limits, Buckets(limits), allocator, metrics, loras=Loras(loras))
    await scheduler.attach_loras()
    if loras.count:
        await scheduler.loras.load("sql", "org/sql", str(Path(__file__).parent))
    service = Service(limits=limits, lifecycle=Lifecycle(), metrics=metrics, options=options or Options())
    tokenizer = make_tokenizer(bos)
    grammars = Grammars(GrammarCompiler(tokenizer, info.vocab_size))
    if phase is not Phase.STARTING:
        service.lifecycle.phase = phase
        if pooling is not None:
            pooler: Any = FakePooler(pooling.ranks)
            service.embedder = Embedder(
                pooler=pooler, pooling=pooling, tokenizer=tokenizer, limits=limits, model=info
            )
    if phase is not Phase.STARTING and pooling is None:
        service.engine = Engine(
            scheduler=Router(scheduler),
            tokenizer=tokenizer,
            templates=ChatTemplates({} if template is None else {"default": template}, SPECIAL_TOKENS),
            grammars=grammars,
            limits=limits,
            model=info,
        )
    config = Config()
    config.bind = ["127.0.0.1:0"]
    transport.configure(config, keep_alive_seconds=keep_alive)
    async with aclosing(grammars), trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        (address,) = await nursery.start(functools.partial(serve, create_app(service), config))
        yield Server(int(address.rpartition(":")[2]), service, executor)
        nursery.cancel_scope.cancel()
