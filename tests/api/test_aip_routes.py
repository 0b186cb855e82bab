"""The routes that Vertex AI names in variables: tgi-behaviour R1.20 and R1.21."""

import pytest

from tgi.config import Options
from tgi.lifecycle import Phase

from .serving import saying, serving

BODY = {"instances": [{"inputs": "a", "parameters": {"max_new_tokens": 2}}]}


@pytest.mark.contract("R1.20")
@pytest.mark.parametrize("predict", ["/predict", "/vertex"])
async def test_the_path_for_predictions(predict: str) -> None:
    options = Options(aip_predict_route=predict, api_key=("k",))
    async with serving(saying("ab"), options=options) as server:
        answers = [
            await server.ask("POST", path, BODY, {"Authorization": "Bearer k"})
            for path in (predict, "/vertex")
        ]
        assert [answer.status for answer in answers] == [200, 200]
        assert answers[0].body == answers[1].body
        # TGI forgets to ask for the key.
        assert (await server.ask("POST", predict, BODY)).status == 401


@pytest.mark.contract("R1.21")
@pytest.mark.parametrize("health", ["/alive", "/health"])
async def test_the_path_for_the_health(health: str) -> None:
    async with serving(options=Options(aip_health_route=health)) as server:
        assert (await server.ask("GET", health)).status == 200
    async with serving(options=Options(aip_health_route=health), phase=Phase.STARTING) as server:
        assert (await server.ask("GET", health)).status == 503


@pytest.mark.contract("R1.21")
async def test_without_the_variables_there_are_no_such_routes() -> None:
    async with serving(saying("ab")) as server:
        assert (await server.ask("POST", "/predict", BODY)).status == 404
        assert (await server.ask("GET", "/alive")).status == 404
