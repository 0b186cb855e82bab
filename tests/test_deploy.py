"""The chart, the dashboard, the alert rules and the compose file fit the server and each other."""

import functools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cyclopts import Argument

from tgi.api.vllm_metrics import SCHEDULER
from tgi.cli import launcher_app
from tgi.flags import read_priorities
from tgi.metrics import Metrics

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "tgi"
METRICS = {family.name: family for family in Metrics().families}
VARIANTS = ["", "gaudi-8", "cpu"]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def merged(base: Any, more: Any) -> Any:
    """Values as Helm merges them: maps by key, and null removes a key."""
    if not isinstance(base, dict) or not isinstance(more, dict):
        return more
    both = base | {name: merged(base.get(name), value) for name, value in more.items()}
    return {name: value for name, value in both.items() if value is not None}


def values(variant: str) -> Any:
    default = read(CHART / "values.yaml")
    return merged(default, read(CHART / f"values-{variant}.yaml")) if variant else default


def leaves(tree: Any, *path: str) -> Iterator[str]:
    """Yield the paths of the values that are no maps with keys."""
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from leaves(value, *path, name)
    else:
        yield ".".join(path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_obey_their_schema(variant: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))

    jsonschema.validate(values(variant), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values(variant) | {"replica": 2}, schema)


def test_each_value_is_used_and_none_is_missing() -> None:
    text = "\n".join(path.read_text("utf-8") for path in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([\w.]+)", text))
    known = set(leaves(read(CHART / "values.yaml")))

    assert {name for name in used if not any(f"{leaf}.".startswith(f"{name}.") for leaf in known)} == set()
    assert {leaf for leaf in known if not any(f"{leaf}.".startswith(f"{name}.") for name in used)} == set()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_takes_the_options_of_the_chart(variant: str) -> None:
    known: dict[str, Argument] = {
        str(name): argument
        for argument in launcher_app.assemble_argument_collection()
        for name in argument.parameter.env_var or ()
    }
    given = values(variant)
    template = (CHART / "templates" / "deployment.yaml").read_text("utf-8")
    fixed = set(re.findall(r"name: ([A-Z_]+)\b", template)) - {"HF_TOKEN"}

    assert fixed <= known.keys()
    flags = [part for name, value in given["options"].items() for part in (known[name].name, str(value))]
    launcher_app.parse_args([*flags, *given["args"]], exit_on_error=False)


@pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")
@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_renders_the_chart(variant: str) -> None:
    more = ["--values", str(CHART / f"values-{variant}.yaml")] if variant else []
    enabled = [f"--set={name}.enabled=true" for name in ("serviceMonitor", "autoscaling", "networkPolicy")]
    command = ["helm", "template", "llama", str(CHART), *more, *enabled]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    kinds = [part["kind"] for part in yaml.safe_load_all(done.stdout) if part]
    assert len(kinds) == len(set(kinds)) == 7


def test_the_chart_and_the_manifest_have_the_same_probes() -> None:
    """And the pod has no token of a service account."""
    template = (CHART / "templates" / "deployment.yaml").read_text("utf-8")
    manifest = (DEPLOY / "kubernetes.yaml").read_text("utf-8")

    for text in (template, manifest):
        assert "automountServiceAccountToken: false" in text
    probe = re.compile(r"(\w+)Probe:\n +httpGet: \{path: ([\w/]+), port: http\}\n +periodSeconds: (\d+)")
    assert len(probe.findall(template)) == 3
    assert probe.findall(template) == probe.findall(manifest)


def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana" / "tgi.json").read_text("utf-8"))


def gateway(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / "gateway" / f"{name}.yaml").read_text("utf-8")))


@functools.cache
def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    rules = [
        rule["expr"]
        for group in read(DEPLOY / "prometheus" / "alerts.yml")["groups"]
        for rule in group["rules"]
    ]
    keda = [trigger["metadata"]["query"] for trigger in gateway("keda")[0]["spec"]["triggers"]]
    hpa = [metric["pods"]["metric"]["name"] for metric in gateway("hpa")[0]["spec"]["metrics"]]
    chart = re.findall(r"tgi_\w+", (CHART / "templates" / "autoscaling.yaml").read_text("utf-8"))
    return [*panels, *rules, *keda, *hpa, *chart]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_metrics_and_labels_that_exist(expression: str) -> None:
    for name, selector in re.findall(r"\b(tgi_\w+)(?:\{([^}]*)\})?", expression):
        part = re.sub(r"_(bucket|sum|count)$", "", name)
        family = METRICS.get(name) or METRICS[part]
        assert (family.kind == "histogram") == (family.name != name), name
        own = set(re.findall(r"(\w+)=", selector)) - {"job", "instance", "service"}
        assert own <= {family._label}, selector


def test_the_dashboard_shows_every_metric_that_tgi_does_not_have() -> None:
    """TGI's dashboard has the rest."""
    text = json.dumps(dashboard())
    own = list(METRICS)[list(METRICS).index("tgi_request_time_between_tokens_duration") :]

    assert [name for name in own if name not in text] == []


def test_an_alert_has_a_section_that_tells_what_to_do() -> None:
    rules = [
        rule for group in read(DEPLOY / "prometheus" / "alerts.yml")["groups"] for rule in group["rules"]
    ]
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    sections = re.findall(r"^### (Tgi\w+)$", page, re.MULTILINE)

    assert [rule["alert"] for rule in rules] == sections
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/reliability.md#{rule['alert'].lower()}"


def test_the_files_that_compose_mounts_exist() -> None:
    services = read(DEPLOY / "compose.yaml")["services"]
    mounts = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    for mount in mounts:
        assert not mount.startswith(".") or (DEPLOY / mount).exists()
    (provider,) = read(DEPLOY / "grafana" / "provisioning" / "dashboards" / "tgi.yaml")["providers"]
    assert f"./grafana/tgi.json:{provider['options']['path']}/tgi.json:ro" in services["grafana"]["volumes"]
    (job,) = read(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"tgi:{services['tgi']['environment']['PORT']}"]}]


def containers(tree: Any) -> Iterator[Any]:
    """Yield all containers in a manifest."""
    if isinstance(tree, dict):
        yield from tree.get("containers", [])
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from containers(part)


@pytest.mark.parametrize("name", ["leaderworkerset", "kuberay"])
def test_a_model_over_two_nodes_has_a_rank_for_each_card(name: str) -> None:
    workload, service = yaml.safe_load_all((DEPLOY / "multi-node" / f"{name}.yaml").read_text("utf-8"))
    first, worker = containers(workload)
    script, joining = first["args"][0], worker["args"][0]
    words = shlex.split(script.partition(" text-generation-launcher ")[2])
    known = {
        text: argument
        for argument in launcher_app.assemble_argument_collection()
        for text in (*argument.names, *(argument.parameter.env_var or ()))
    }
    assert {word for word in words if word.startswith("--")} <= set(known)
    assert {entry["name"] for entry in first["env"]} - {"HF_TOKEN"} <= set(known)

    shards, stages = (
        int(words[words.index(f"--{name}") + 1]) for name in ("num-shard", "pipeline-parallel-size")
    )
    cards = [one["resources"]["limits"]["habana.ai/gaudi"] for one in (first, worker)]
    assert cards == [int(re.findall(r'"HPU": (\d+)', text)[0]) for text in (script, joining)]
    assert shards * stages == sum(cards)
    pod = next(labels for labels in labels_in(workload) if labels["role"] in ("leader", "head"))
    assert service["spec"]["selector"] == pod


def labels_in(tree: Any) -> Iterator[Any]:
    """Yield the labels of all pods in a manifest."""
    if isinstance(tree, dict):
        if "labels" in tree:
            yield tree["labels"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from labels_in(part)


def test_the_pool_has_the_pods_of_the_chart() -> None:
    """Installed as "llama": its labels, its port, its deployment."""
    pool, *objectives, route = gateway("pool")
    labels = {
        "app.kubernetes.io/name": read(CHART / "Chart.yaml")["name"],
        "app.kubernetes.io/instance": "llama",
    }
    template = (CHART / "templates" / "deployment.yaml").read_text("utf-8")

    assert pool["spec"]["selector"]["matchLabels"] == labels
    assert all(name in (CHART / "templates" / "_helpers.tpl").read_text("utf-8") for name in labels)
    (port,) = pool["spec"]["targetPorts"]
    assert f"containerPort: {port['number']}" in template
    for objective in objectives:
        assert objective["kind"] == "InferenceObjective"
        assert objective["spec"]["poolRef"]["name"] == pool["metadata"]["name"]
    given = {one["metadata"]["name"]: one["spec"]["priority"] for one in objectives}
    (told,) = re.findall(r"--objectives (\S+)`", (ROOT / "docs" / "scaling.md").read_text("utf-8"))
    assert read_priorities([told]) == given
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    group = pool["apiVersion"].partition("/")[0]
    assert backend == {"group": group, "kind": pool["kind"], "name": pool["metadata"]["name"]}
    for (scaler,) in (gateway("hpa"), gateway("keda")):
        assert scaler["spec"]["scaleTargetRef"]["name"] == "llama-tgi"


def test_the_endpoint_picker_finds_the_metrics_that_the_guide_names() -> None:
    section = (ROOT / "docs" / "scaling.md").read_text("utf-8").partition("| the picker wants |")[2]
    named = set(re.findall(r"`vllm:(\w+)`", section))

    assert named == {*list(SCHEDULER)[:3], "cache_config_info", "lora_requests_info"}
