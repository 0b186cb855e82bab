"""A Prometheus scrapes a server, and understands every expression of the dashboard and of the alert rules."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tgi.config import DEMO_MODEL

from .conftest import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "30s"}
NOT_ON_A_CPU = {
    "Padding, share of tokens",
    "Padding, share of KV blocks read",
    "Compilations while serving, and steps without a graph",
    "Memory of the first device",
}
AFTER_FAULTS = {
    "Restarts of the ranks, steps that failed",
    "Lines of the log that were lost",
    "Requests at each replica",  # one of its lines is for those that do not serve
}
UNDER_LOAD = {"Requests that join the batch, by reason"}


@pytest.fixture(scope="module")
def query(
    start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Any]]:
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    server = start(model_id=DEMO_MODEL, replicas=2).wait_ready()
    scrape = {"job_name": "tgi", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}
    settings = {"global": {"scrape_interval": "1s"}, "rule_files": [str(RULES)], "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def ask(expression: str) -> Any:
        address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address) as response:
            return json.load(response)["data"]["result"]

    try:
        for _ in range(8):  # between scrapes, so that rates have several samples
            server.generate("What is a violin?", max_new_tokens=5)
            server.post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 0}})
            time.sleep(1)
        yield ask
    finally:
        process.kill()
        process.wait()
        server.end()


def test_panels_of_the_dashboard_have_data(query: Callable[[str], Any]) -> None:
    empty = set()
    for panel in json.loads((DEPLOY / "grafana" / "tgi.json").read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            if not query(expression):
                empty.add(panel["title"])

    assert empty <= NOT_ON_A_CPU | AFTER_FAULTS | UNDER_LOAD


def test_no_alert_is_raised_by_a_server_that_is_well(query: Callable[[str], Any]) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]

    assert [rule["alert"] for rule in rules if query(rule["expr"])] == []
    assert query("up") != []
