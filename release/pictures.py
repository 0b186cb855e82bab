"""Make the pictures of docs/images: `python release/pictures.py`.

A server of the demo model is put under load. Chromium shows its page. Prometheus scrapes it, and answers the
expression of each panel of deploy/grafana/tgi.json; the dashboard is drawn here, without Grafana, with its
titles, order and legends. Needs prometheus and chromium, and `make clients`.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
DASHBOARD = ROOT / "deploy" / "grafana" / "tgi.json"
CLIENTS = ROOT / "integration-tests" / "clients"
PORT, SCRAPER = 18371, 18372
SECONDS = 100
"""Length of the load."""
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "15s"}
COLUMNS = 3


@contextmanager
def running(*command: str) -> Iterator[None]:
    """Run a program for as long as the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)


def wait_ready(url: str) -> None:
    """Wait until an address answers 200. Raises TimeoutError."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(url)


def values(expression: str, begin: float, end: float) -> list[Any]:
    """Return the series of an expression, as Prometheus has them."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": 1})
    with urllib.request.urlopen(f"http://127.0.0.1:{SCRAPER}/api/v1/query_range?{query}") as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
        return found


def legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    """Return the name of a series, as Grafana writes it."""
    form = target.get("legendFormat", "")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def draw_dashboard(begin: float, end: float, path: Path) -> None:
    """Draw all panels, in the dashboard's order."""
    panels = [one for one in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if one["type"] != "row"]
    rows = -(-len(panels) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(12, 1.55 * rows), layout="constrained")
    for place, panel in zip(axes.flat, panels, strict=False):
        place.set_title(panel["title"], fontsize=8, loc="left")
        place.tick_params(labelsize=6)
        place.grid(alpha=0.3)
        series = [(target, one) for target in panel["targets"] for one in values(target["expr"], begin, end)]
        for target, one in series:
            times, numbers = zip(*one["values"], strict=True)
            label = legend(target, one["metric"]) or None
            place.plot([at - begin for at in times], list(map(float, numbers)), linewidth=1, label=label)
        if not series:
            place.text(0.5, 0.5, "no data", transform=place.transAxes, ha="center", fontsize=7, color="gray")
        elif any(line.get_label()[:1] != "_" for line in place.lines):
            place.legend(fontsize=6, loc="upper left", framealpha=0.6)
        place.set_ylim(bottom=0)
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    figure.savefig(path, dpi=85)
    pyplot.close(figure)


def shrink(path: Path) -> None:
    """Write a PNG with few colours, which is a third as large."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(32).save(path, optimize=True)


def main() -> None:
    """Make all pictures."""
    tgi = str(Path(sys.executable).with_name("tgi"))
    url = f"http://127.0.0.1:{PORT}"
    browser = shutil.which("chromium")
    assert browser is not None, "install chromium"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scrape = {"job_name": "tgi", "static_configs": [{"targets": [f"127.0.0.1:{PORT}"]}]}
        settings = Path(folder) / "prometheus.json"  # JSON is YAML
        settings.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
        stack.enter_context(running(tgi, "serve", "--hostname", "127.0.0.1", "--port", str(PORT)))
        wait_ready(f"{url}/health")
        listen = f"--web.listen-address=127.0.0.1:{SCRAPER}"
        data = f"--storage.tsdb.path={folder}/data"
        stack.enter_context(running("prometheus", f"--config.file={settings}", data, listen))
        wait_ready(f"http://127.0.0.1:{SCRAPER}/-/ready")
        begin = time.time()
        load = [tgi, "bench", url, "--rate", "1", "2", "--requests", "80", "--output-tokens", "40"]
        with running(*load):
            python = ROOT / ".venv" / "clients" / "bin" / "python"
            command = [python, CLIENTS / "use_page.py", url, browser, folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            time.sleep(max(0.0, begin + SECONDS - time.time()))
        time.sleep(5)
        draw_dashboard(begin, time.time(), IMAGES / "dashboard.png")
        for name in ("chat", "dark", "engine", "phone", "tokens"):
            shutil.copy(Path(folder) / f"{name}.png", IMAGES)
    for path in IMAGES.glob("*.png"):
        if path.stem in ("chat", "dark", "dashboard", "engine", "phone", "tokens"):
            shrink(path)


if __name__ == "__main__":
    main()
