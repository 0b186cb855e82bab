"""The OpenAPI document, and Swagger UI to read it and to try it out; all of it served from here."""

import trio
from quart import Blueprint, Response
from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]
from werkzeug.exceptions import NotFound

from tgi.api.answers import empty, json_answer
from tgi.api.openapi import document
from tgi.api.service import Service

ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
"""What the page needs of the package."""
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Text Generation Inference</title>
<link rel="stylesheet" href="swagger-ui.css">
<link rel="icon" href="favicon-32x32.png">
<div id="page"></div>
<script src="swagger-ui-bundle.js"></script>
<script>
  SwaggerUIBundle({url: "../api-doc/openapi.json", dom_id: "#page", deepLinking: true})
</script>
</html>
"""


def routes(service: Service) -> Blueprint:
    """`/api-doc/openapi.json`, `/docs` and what it loads."""
    blueprint = Blueprint("docs", __name__)

    @blueprint.get("/api-doc/openapi.json")
    async def openapi() -> Response:
        engine = service.engine
        if engine is None:
            return json_answer(document(service.limits))
        return json_answer(document(engine.limits, engine.model.vocab_size))

    @blueprint.get("/docs")
    async def docs() -> Response:
        return empty(303, {"location": "/docs/"})

    @blueprint.get("/docs/")
    async def page() -> Response:
        return Response(PAGE, 200, {"content-type": "text/html; charset=utf-8"})

    @blueprint.get("/docs/<name>")
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise NotFound
        data = await trio.Path(str(swagger_ui_path / name)).read_bytes()
        return Response(data, 200, {"content-type": ASSETS[name]})

    return blueprint
