"""Routes of models that give embeddings or scores, in the forms of OpenAI, of Cohere and Jina, and of TEI."""

import base64
import math
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import trio
from msgspec import UNSET, UnsetType
from quart import Response

from tgi.errors import ContextLengthExceeded, ValidationError, WrongTask
from tgi.pooler import PooledText
from tgi.sampling import about

from . import refused
from .call import BODY_ERRORS, Call, Route, json_answer, post
from .refused import refusing

Array = npt.NDArray[np.float32]
Item = TypeVar("Item")
NO_TEXT = "there is no text"
MAX_TEXTS = 2048
"""Maximum texts of a request, as OpenAI has it."""
INLINE_NUMBERS = 20_000
"""Numbers of vectors that are written on the event loop; more would delay other requests."""
_TRUNCATE = about("Cut texts that are longer than the model takes, instead of refusing them.")
_MODEL = about("Not read: the server has one model.")
_INPUT = Annotated[str | list[str | int | list[int]], about("Texts, or their tokens.")]


@refusing(refused.EMBEDDINGS)
class EmbeddingRequest(msgspec.Struct):
    """The body of OpenAI's `/v1/embeddings`."""

    input: _INPUT
    model: Annotated[str | None, _MODEL] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None, about("Numbers, or base64 of little-endian float32.")
    ] = None
    dimensions: Annotated[
        int | None, about("Numbers of a vector: the first ones, for models that were trained for it.")
    ] = None
    user: Annotated[str | None, about("Not read.")] = None
    truncate: Annotated[bool | None, _TRUNCATE] = None


class EmbeddingUsage(msgspec.Struct):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """The vector of a text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class ListResponse(msgspec.Struct, Generic[Item]):
    """An answer with one item for each text or pair of the request."""

    object: Literal["list"]
    data: list[Item]
    model: str
    usage: EmbeddingUsage


class EmbeddingResponse(ListResponse[Embedding]):
    """The answer of `/v1/embeddings`."""


@refusing(refused.POOLING)
class EmbedRequest(msgspec.Struct):
    """The body of TEI's `/embed`."""

    inputs: _INPUT
    normalize: Annotated[bool, about("Scale vectors to length 1.")] = True
    truncate: Annotated[bool | None, _TRUNCATE] = None
    prompt_name: Annotated[str | None, about("Name of one of the model's prompts, which comes first.")] = None
    dimensions: Annotated[int | None, about("Numbers of a vector.")] = None


class Document(msgspec.Struct):
    """A text of a rerank."""

    text: str


@refusing(refused.RERANK)
class RerankRequest(msgspec.Struct):
    """The body of `/v1/rerank`, as Cohere, Jina and vLLM have it."""

    query: Annotated[str, about("The text that the documents are compared with.")]
    documents: Annotated[list[str | Document], about("The texts to order.", minItems=1)]
    model: Annotated[str | None, _MODEL] = None
    top_n: Annotated[int | None, about("Number of results; null: all.")] = None
    return_documents: Annotated[bool | None, about("Have the texts in the results; null: yes.")] = True
    truncate: Annotated[bool | None, _TRUNCATE] = None


class RerankResult(msgspec.Struct):
    """A document and its score."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankUsage(msgspec.Struct):
    """Tokens of a rerank."""

    total_tokens: int


class RerankResponse(msgspec.Struct):
    """The answer of `/v1/rerank`, the best document first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]


@refusing(refused.POOLING)
class TextsRequest(msgspec.Struct):
    """The body of TEI's `/rerank`."""

    query: Annotated[str, about("The text that the others are compared with.")]
    texts: Annotated[list[str], about("The texts to order.", minItems=1)]
    raw_scores: Annotated[bool, about("Scores as the model gives them, not between 0 and 1.")] = False
    return_text: Annotated[bool, about("Have the texts in the results.")] = False
    truncate: Annotated[bool | None, _TRUNCATE] = None


class Rank(msgspec.Struct):
    """A text's score in TEI's `/rerank`."""

    index: int
    score: float
    text: str | UnsetType = UNSET


@refusing(refused.SCORES)
class ScoreRequest(msgspec.Struct):
    """The body of vLLM's `/v1/score`."""

    text_1: Annotated[str | list[str], about("One text for all, or one for each of `text_2`.")]
    text_2: Annotated[str | list[str], about("The texts to compare with.")]
    model: Annotated[str | None, _MODEL] = None
    truncate: Annotated[bool | None, _TRUNCATE] = None


class Score(msgspec.Struct):
    """The score of a pair."""

    index: int
    object: Literal["score"]
    score: float


class ScoreResponse(ListResponse[Score]):
    """The answer of `/v1/score`."""

    id: str
    created: int


async def embeddings(call: Call[EmbeddingRequest]) -> Response:
    """Answer `/v1/embeddings`. Vectors have length 1."""
    body = call.body
    texts = _listed(body.input)
    encoded = await _encoded(call, [_with_prompt(call, text, None) for text in texts], bool(body.truncate))
    vectors = await _embedded(call, encoded, body.dimensions, normalize=True)
    tokens = sum(len(one.ids) for one in encoded)

    def answer() -> Response:
        if body.encoding_format == "base64":
            shown: list[Any] = [
                base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors
            ]
        else:
            shown = vectors.tolist()
        data = [Embedding("embedding", index, vector) for index, vector in enumerate(shown)]
        model = call.embedder.model.served_name
        return json_answer(EmbeddingResponse("list", data, model, EmbeddingUsage(tokens, tokens)))

    return await _answered(answer, vectors.size)


async def embed(call: Call[EmbedRequest]) -> Response:
    """Answer TEI's `/embed`."""
    body = call.body
    texts = [_with_prompt(call, text, body.prompt_name) for text in _listed(body.inputs)]
    encoded = await _encoded(call, texts, bool(body.truncate))
    vectors = await _embedded(call, encoded, body.dimensions, normalize=body.normalize)
    return await _answered(lambda: json_answer(vectors.tolist()), vectors.size)


async def rerank(call: Call[RerankRequest | TextsRequest]) -> Response:
    """Answer `/v1/rerank` and `/rerank`, in the form of the request."""
    body = call.body
    asked = body.texts if isinstance(body, TextsRequest) else body.documents
    texts = [text if isinstance(text, str) else text.text for text in asked]
    raw = isinstance(body, TextsRequest) and body.raw_scores
    scores, tokens = await _scores(call, [(body.query, text) for text in texts], body.truncate, raw)
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    if isinstance(body, TextsRequest):
        return json_answer(
            [Rank(index, scores[index], texts[index] if body.return_text else UNSET) for index in order]
        )
    if body.top_n is not None and body.top_n < 1:
        raise ValidationError("`top_n` must be at least 1")
    results = [
        RerankResult(
            index, scores[index], Document(texts[index]) if body.return_documents is not False else UNSET
        )
        for index in order[: body.top_n]
    ]
    model = call.embedder.model.served_name
    return json_answer(RerankResponse(f"rerank-{call.exchange.id}", model, RerankUsage(tokens), results))


async def score(call: Call[ScoreRequest]) -> Response:
    """Answer `/v1/score`, as vLLM does."""
    ones, others = _listed(call.body.text_1), _listed(call.body.text_2)
    if len(ones) not in (1, len(others)):
        raise ValidationError(
            f"`text_1` has {len(ones)} texts and `text_2` {len(others)}: give one, or as many"
        )
    pairs = list(zip(ones * len(others) if len(ones) == 1 else ones, others, strict=True))
    scores, tokens = await _scores(call, pairs, call.body.truncate, raw=False)
    data = [Score(index, "score", value) for index, value in enumerate(scores)]
    model, usage = call.embedder.model.served_name, EmbeddingUsage(tokens, tokens)
    return json_answer(
        ScoreResponse("list", data, model, usage, id=f"score-{call.exchange.id}", created=int(time.time()))
    )


def _listed(given: Any) -> list[Any]:
    """Return a list of texts, each as such or as its tokens.

    Raises ValidationError for no text, too many, or tokens beside texts.
    """
    if isinstance(given, str) or (given and all(isinstance(one, int) for one in given)):
        return [given]
    if not given:
        raise ValidationError(NO_TEXT)
    if any(isinstance(one, int) for one in given):
        raise ValidationError("tokens stand beside texts: give one list of tokens, or a list of such lists")
    if len(given) > MAX_TEXTS:
        raise ValidationError(f"{len(given)} texts are more than {MAX_TEXTS}")
    return list(given)


def _with_prompt(call: Call[Any], text: str | list[int], name: str | None) -> str | list[int]:
    """Return the text with the model's prompt of that name before it, or else its default one."""
    prompts, pooling = call.embedder.pooling.prompts, call.embedder.pooling
    if name is not None and name not in prompts:
        known = ", ".join(prompts) or "none"
        raise ValidationError(f"`prompt_name` {name!r} is none of the model's prompts: {known}")
    prompt = prompts.get(name or pooling.default_prompt or "", "")
    return prompt + text if isinstance(text, str) else text


async def _encoded(
    call: Call[Any], texts: Sequence[str | list[int] | tuple[str, str]], truncate: bool
) -> list[PooledText]:
    """Return the tokens of texts. Raises ValidationError for those that are none, or too many."""
    embedder = call.embedder
    longest, vocabulary = embedder.limits.max_input_tokens, embedder.model.vocab_size

    def encode() -> list[PooledText]:
        found = []
        for text in texts:
            if isinstance(text, list):
                if any(not 0 <= token < vocabulary for token in text):
                    raise ValidationError(f"a token is none of the model's, which are 0 to {vocabulary - 1}")
                one = PooledText(text, [0] * len(text))
            else:
                pair = text if isinstance(text, tuple) else (text, None)
                lower = [part.lower() if part and embedder.pooling.lowers else part for part in pair]
                cut = longest if truncate else None
                one = PooledText(*embedder.tokenizer.encode_pair(lower[0] or "", lower[1], truncate=cut))
            if truncate and isinstance(text, list):
                one = PooledText(one.ids[:longest], one.types[:longest])
            if not one.ids:
                raise ValidationError("a text has no tokens")
            if len(one.ids) > longest:
                raise ContextLengthExceeded(
                    f"a text has {len(one.ids)} tokens, and this model takes {longest}: shorten it, or set "
                    "`truncate`"
                )
            found.append(one)
        return found

    return await call.tokenized(encode, sum(map(_length, texts)))


def _length(text: str | list[int] | tuple[str, str]) -> int:
    return sum(map(len, text)) if isinstance(text, tuple) else len(text)


async def _embedded(
    call: Call[Any], texts: list[PooledText], dimensions: int | None, *, normalize: bool
) -> Array:
    """Return vectors, [N, size], cut to `dimensions`. Raises ValidationError and WrongTask."""
    embedder = call.embedder
    if embedder.pooling.ranks:
        raise WrongTask(f"{embedder.model.served_name} scores pairs of texts, and gives no embeddings")
    size, allowed = embedder.pooler.size, embedder.pooling.dimensions
    if dimensions is not None and not (1 <= dimensions <= size and (not allowed or dimensions in allowed)):
        choice = " or ".join(map(str, allowed)) if allowed else f"1 to {size}"
        raise ValidationError(f"`dimensions` is {dimensions}, and this model has {choice}")
    with call.pooling(sum(len(one.ids) for one in texts)):
        vectors = (await embedder.pooler.pool(texts))[:, :dimensions]
    return _normalized(vectors) if normalize else vectors


async def _scores(
    call: Call[Any], pairs: list[tuple[str, str]], truncate: bool | None, raw: bool
) -> tuple[list[float], int]:
    """Return the scores of pairs: the reranker's, or the cosine of their embeddings; and their tokens."""
    if not pairs:
        raise ValidationError(NO_TEXT)
    if len(pairs) > MAX_TEXTS:
        raise ValidationError(f"{len(pairs)} texts are more than {MAX_TEXTS}")
    embedder = call.embedder
    if not embedder.pooling.ranks:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        encoded = await _encoded(call, [_with_prompt(call, text, None) for text in texts], bool(truncate))
        vectors = dict(zip(texts, await _embedded(call, encoded, None, normalize=True), strict=True))
        cosines = [float(vectors[one] @ vectors[other]) for one, other in pairs]
        return cosines, sum(len(one.ids) for one in encoded)
    encoded = await _encoded(call, pairs, bool(truncate))
    with call.pooling(tokens := sum(len(one.ids) for one in encoded)):
        logits = [float(row[0]) for row in await embedder.pooler.pool(encoded)]
    return logits if raw else [_sigmoid(logit) for logit in logits], tokens


def _sigmoid(logit: float) -> float:
    """Return 1 / (1 + e^-logit), in the form whose exponential does not overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    small = math.exp(logit)
    return small / (1 + small)


def _normalized(vectors: Array) -> Array:
    """Return vectors of length 1; a zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Array = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled


async def _answered(answer: Callable[[], Response], numbers: int) -> Response:
    """Return the answer, written in a thread if it has many numbers."""
    return answer() if numbers <= INLINE_NUMBERS else await trio.to_thread.run_sync(answer)


_TEXTS = ["A violin is a bowed instrument.", "A drum is hit."]
_QUERY = "What is a violin?"


def _post(path: str, name: str, summary: str, handler: Any, *bodies: type, **more: Any) -> Route:
    return post(path, name, summary, handler, *bodies, errors=(*BODY_ERRORS, 404), pools=True, **more)


ROUTES = (
    _post(
        "/v1/embeddings", "embeddings", "Embeddings of texts, as OpenAI has them", embeddings,
        EmbeddingRequest, answer=EmbeddingResponse, example={"input": _QUERY},
    ),
    _post(
        "/v1/rerank", "rerank", "Documents in the order of their relevance", rerank,
        RerankRequest, answer=RerankResponse, example={"query": _QUERY, "documents": _TEXTS},
    ),
    _post(
        "/rerank", "rerank_texts", "The same, in the form of TEI or of Cohere", rerank,
        TextsRequest, RerankRequest, answer=(list[Rank], RerankResponse),
        example={"query": _QUERY, "texts": _TEXTS},
    ),
    _post(
        "/v1/score", "score", "Scores of pairs of texts, as vLLM has them", score,
        ScoreRequest, answer=ScoreResponse, example={"text_1": _QUERY, "text_2": _TEXTS},
    ),
    _post(
        "/embed", "embed", "Embeddings of texts, as TEI has them", embed,
        EmbedRequest, answer=list[list[float]], example={"inputs": _QUERY},
    ),
)  # fmt: skip
