"""The application: all routes, and the rules that hold for each: errors, CORS, the API key."""

import difflib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

import attrs
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from tgi.errors import (
    ANTHROPIC,
    OLLAMA,
    OPENAI,
    ApiError,
    BodyError,
    BodyTooLarge,
    InternalError,
    Unauthorized,
    UnknownPath,
)

from .call import Call, Route, empty_answer, given_keys, json_answer, text_answer
from .info import health
from .openapi import ROUTES
from .platforms import vertex
from .service import Service
from .transport import HTTPConnection, current_exchange

log = logging.getLogger(__name__)
MAX_HEADER = 2000
"""Maximum characters of a header with text of ours."""
BODY_SECONDS = 60.0
"""Maximum time that a client may take to send its body."""
MAX_PATH = 100
"""Maximum characters of an unknown path that an answer repeats."""
STORED = "/v1/responses/"
"""Beginning of the paths of what clients have stored."""
VARY = "origin, access-control-request-method, access-control-request-headers"


def create_app(service: Service) -> QuartTrio:
    """Return an ASGI application that answers for this service; it needs `transport.configure`."""
    app = QuartTrio("tgi", static_folder=None)
    app.asgi_http_class = HTTPConnection
    app.config["RESPONSE_TIMEOUT"] = None  # a stream may take as long as it takes
    app.config["BODY_TIMEOUT"] = BODY_SECONDS
    app.config["MAX_CONTENT_LENGTH"] = service.options.payload_limit
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["RECEIVING"] = set()  # see HTTPConnection
    app.config["ROOT_PATH"] = service.options.root_path.rstrip("/")
    app.url_map.merge_slashes = False
    routes = list(_routes(service))
    for number, route in enumerate(routes):
        app.add_url_rule(
            route.path,
            endpoint=f"{route.name} {number}",
            view_func=_view(service, route),
            methods=[route.method],
        )
    app.register_error_handler(ApiError, _answer_error)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_defect)

    @app.errorhandler(NotFound)
    async def answer_unknown_path(_error: NotFound) -> Response:
        return await _answer_error(UnknownPath(_what_there_is(service, routes)))

    @app.before_request
    async def answer_early() -> Response | None:
        if "Content-Length" in request.headers and "Transfer-Encoding" in request.headers:
            return empty_answer(400, {"connection": "close"})  # RFC 9112, 6.1
        if request.method == "OPTIONS":
            deletes = request.path.startswith(STORED)
            headers = {
                "access-control-allow-methods": "GET,POST,DELETE" if deletes else "GET,POST",
                "access-control-allow-headers": "content-type,authorization,*",
            }
            return empty_answer(200, headers)
        if service.options.api_key and _is_guarded() and not _is_authorized(service.options.api_key):
            raise Unauthorized
        return None

    @app.after_request
    async def decorate(response: Response) -> Response:
        response.headers["vary"] = VARY
        exchange = current_exchange()
        response.headers["x-request-id"] = exchange.id
        for name, value in exchange.limits.items():
            response.headers.setdefault(name, value)
        if exchange.remarks:
            response.headers["x-grammar-warning"] = _header_text("; ".join(exchange.remarks))
        origin = _allowed_origin(service.options.cors_allow_origin)
        if origin is not None:
            response.headers["access-control-allow-origin"] = origin
            response.headers["access-control-expose-headers"] = "*"
        if response.status_code >= 400:
            log.debug("%s %s: %d", request.method, request.path, response.status_code, extra=_id())
        return response

    return app


def _routes(service: Service) -> Iterator[Route]:
    """Yield all routes, also those at the paths that Vertex AI chooses."""
    yield from ROUTES
    options = service.options
    for path, handler in ((options.aip_health_route, health), (options.aip_predict_route, vertex)):
        if path is not None:
            route = next(route for route in ROUTES if route.handler is handler)
            yield attrs.evolve(route, path=path)


def _view(service: Service, route: Route) -> Callable[..., Awaitable[Response]]:
    async def answer(**arguments: str) -> Response:
        return await route.handler(await Call.of_request(service, route, arguments))

    return answer


def _what_there_is(service: Service, routes: Iterable[Route]) -> str:
    """Return the path that was asked for, the known paths, and the model that answers at them."""
    path = request.path if len(request.path) <= MAX_PATH else f"{request.path[:MAX_PATH]}…"
    known = {route.template: route.method for route in routes if route.documented}
    near = difflib.get_close_matches(path, known, 1) or [other for other in known if other.endswith(path)]
    hint = f"; did you mean {near[0]}?" if path.strip("/") and near else "."
    paths = ", ".join(f"{method} {path}" for path, method in sorted(known.items()) if len(path) > 1)
    model = "" if service.engine is None else f" of {service.engine.model.served_name}"
    return f"{path}{hint} The paths{model} are {paths}"


def _is_guarded() -> bool:
    """Return whether the request needs the API key (R1.33, R1.50).

    Every POST does, because it makes the model or the tokenizer work, and so does a wrong method of a path
    that has a POST only.
    """
    if request.url_rule is not None:
        return request.method in ("POST", "DELETE") or request.path.startswith(STORED)
    error = request.routing_exception
    return isinstance(error, MethodNotAllowed) and set(error.valid_methods or ()) == {"POST"}


def _is_authorized(keys: tuple[str, ...]) -> bool:
    """Return whether the request has one of the keys, in constant time (R1.51; case counts in the key).

    It comes as a bearer token, or in `X-Api-Key`.
    """
    matches = [hmac.compare_digest(one.encode(), key.encode()) for one in given_keys() for key in keys]
    return any(matches)


def _header_text(text: str) -> str:
    """Return a text as the value of a header: cut, printable, and ASCII."""
    shown = text.encode("ascii", "backslashreplace").decode()
    shown = "".join(character if character.isprintable() else " " for character in shown)
    return shown if len(shown) <= MAX_HEADER else shown[:MAX_HEADER] + " ..."


def _allowed_origin(allowed: tuple[str, ...]) -> str | None:
    if not allowed or "*" in allowed:
        return "*"
    origin = request.headers.get("Origin")
    return origin if origin in allowed else None


async def _answer_error(error: ApiError) -> Response:
    """Answer with an error in the shape of the API that was called."""
    if request.path.startswith(OPENAI):
        is_anthropics = request.path.startswith(ANTHROPIC)
        body = error.to_anthropic_body() if is_anthropics else error.to_openai_body()
        return json_answer(body, error.status_for(OPENAI), error.headers)
    if isinstance(error, BodyError) and not request.path.startswith(OLLAMA):
        return text_answer(str(error), error.status)
    if isinstance(error, Unauthorized):
        return empty_answer(error.status)
    return json_answer(error.to_body(), error.status, error.headers)


async def _answer_http_error(error: HTTPException) -> Response:
    """Answer to a request that the framework refuses: without a body (R1.31) in most cases."""
    if isinstance(error, RequestEntityTooLarge):
        return await _answer_error(BodyTooLarge())
    headers: Mapping[str, str] = {}
    if isinstance(error, MethodNotAllowed):
        valid = error.valid_methods or ()
        headers = {
            "allow": ",".join(method for method in ("POST", "GET", "HEAD", "DELETE") if method in valid)
        }
    return empty_answer(error.code or 500, headers)


async def _answer_defect(error: Exception) -> Response:
    log.error("a defect while answering %s %s", request.method, request.path, exc_info=error, extra=_id())
    return await _answer_error(InternalError())


def _id() -> dict[str, str]:
    return {"request_id": current_exchange().id}
