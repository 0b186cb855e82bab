"""Faults of plugins that pluggy does not find: clashing names, misspelt hooks, failing imports."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installed import install, offer
from tgi.device import tgi_devices
from tgi.plugins import ConfigError, JsonReader, architectures, devices, load_plugins

HOOK = "from tgi.plugins import hookimpl\n@hookimpl\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder in which this process and its children find installed distributions."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    importlib.invalidate_caches()
    load_plugins.cache_clear()
    yield tmp_path
    load_plugins.cache_clear()


def tgi(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tgi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)


def test_two_packages_may_choose_the_same_entry_point_name(place: Path) -> None:
    offer(place, "plug-a", "AForCausalLM")
    offer(place, "plug-b", "BForCausalLM")

    assert {"AForCausalLM", "BForCausalLM"} <= set(architectures(load_plugins()))


def test_who_asks_for_what_two_offer_is_told_both(place: Path) -> None:
    offer(place, "plug-c", "CForCausalLM")
    offer(place, "plug-d", "CForCausalLM")
    offer(place, "plug-e", "EForCausalLM")
    found = architectures(load_plugins())

    message = (
        "the architecture CForCausalLM is offered by plug-c 1.0 (plugin = plug_c) and plug-d 1.0 "
        "(plugin = plug_d): keep one of them, `pip uninstall plug-c` or `pip uninstall plug-d`"
    )
    assert "CForCausalLM" in found
    with pytest.raises(ConfigError) as caught:
        found["CForCausalLM"]
    assert str(caught.value) == message
    assert load_plugins().problems == [message]
    assert found["EForCausalLM"].model == "plug_e:Model"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "import does_not_exist",
            "it cannot be imported: ModuleNotFoundError: No module named 'does_not_exist'; reinstall it, or "
            "`pip uninstall plug-f`",
        ),
        (
            "raise SystemExit(3)",
            "it cannot be imported: SystemExit: 3; reinstall it, or `pip uninstall plug-f`",
        ),
        (
            HOOK + "def tgi_architecture(): return []",
            "no hook is named 'tgi_architecture'; rename it, perhaps to 'tgi_architectures'",
        ),
        (
            HOOK + "def tgi_device(): return []",
            "no hook is named 'tgi_device'; rename it, perhaps to 'tgi_devices'",
        ),
        (
            "def tgi_devices(): return []",
            "tgi_devices has no @hookimpl above it, so that it is never called",
        ),
        ("", "it has no hook: a function tgi_architectures or tgi_devices below @hookimpl"),
        (
            HOOK + "def tgi_devices(): return 1 / 0",
            "tgi_devices() fails: ZeroDivisionError: division by zero",
        ),
        (
            HOOK + "def tgi_devices(): return ['cpu']",
            "tgi_devices() must return a list of DeviceSpec, and has 'cpu' in it",
        ),
    ],
)
def test_a_broken_plugin_is_left_out_with_the_reason(place: Path, source: str, problem: str) -> None:
    install(place, "plug-f", source)
    sys.modules.pop("plug_f", None)

    plugins = load_plugins()

    assert plugins.problems == [f"plugin plug-f 1.0 (plugin = plug_f) is left out: {problem}"]
    assert "cpu" in devices(plugins)


def test_a_hook_with_an_argument_is_left_out(place: Path) -> None:
    install(place, "plug-g", HOOK + "def tgi_devices(server): return []")

    (problem,) = load_plugins().problems

    assert "plug-g 1.0" in problem
    assert problem.endswith(
        "Argument(s) {'server'} are declared in the hookimpl but can not be found in the hookspec"
    )


def test_the_list(place: Path) -> None:
    """Everything that is installed, with what it offers, and then what is wrong."""
    offer(place, "plug-h", "HForCausalLM")
    install(place, "plug-i", "import does_not_exist", entry="i")

    listed = tgi("plugins")

    assert (listed.returncode, listed.stderr) == (1, "")
    lines = listed.stdout.splitlines()
    assert lines[lines.index("plug-h 1.0 (plugin = plug_h)") + 1] == "  architectures: HForCausalLM"
    assert lines[lines.index("plug-i 1.0 (i = plug_i)") + 1] == "  left out"
    assert f"  devices: {', '.join(spec.name for spec in tgi_devices())}" in lines
    assert "  devices: hpu-sim" in lines
    assert any(line.startswith("  architectures: LlamaForCausalLM") for line in lines)
    assert lines[-1].startswith("! plugin plug-i 1.0 (i = plug_i) is left out: it cannot be imported")


def test_the_list_as_json() -> None:
    listed = tgi("plugins", "--json")

    assert (listed.returncode, listed.stderr) == (0, "")
    found = json.loads(listed.stdout)
    assert found["problems"] == []
    (bloom,) = [plugin for plugin in found["plugins"] if plugin["distribution"] == "tgi-bloom"]
    assert bloom == {
        "distribution": "tgi-bloom",
        "version": importlib.metadata.version("tgi-bloom"),
        "entry_point": "bloom",
        "module": "tgi_bloom.plugin",
        "architectures": {"BloomForCausalLM": "tgi.layers:LlamaDecoder"},
        "devices": {},
        "problem": None,
    }


def test_the_list_does_without_torch() -> None:
    code = "import sys; from tgi.plugins.show import show_plugins as s; s(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_reader_names_what_is_wrong() -> None:
    get = JsonReader({"layers": 2, "theta": 10000, "flag": True, "rope": {"factor": 2}})

    assert get(int, "layers") == 2
    assert get(float, "theta") == 10000.0
    assert get(int, "missing", 7) == 7
    with pytest.raises(ConfigError, match=r"config.json has no 'missing'"):
        get(int, "missing")
    with pytest.raises(ConfigError, match=r"'layers' is 2, expected str"):
        get(str, "layers")
    with pytest.raises(ConfigError, match=r"'flag' is True, expected int"):
        get(int, "flag")
    assert get.size("layers") == 2
    with pytest.raises(ConfigError, match=r"'none' is 0, expected 1 or more"):
        JsonReader({"none": 0}).size("none")
    rope = get.section("rope")
    assert rope is not None
    assert rope(float, "factor") == 2.0
    assert get.section("none") is None


def test_a_reader_with_the_keys_and_defaults_of_another_family() -> None:
    get = JsonReader({"n_embd": 64, "n_head": None, "n_layer": 0, "more": {"depth": 1}, "odd": 1})
    names = {"hidden_size": "n_embd", "heads": "n_head", "layers": "n_layer", "size": "n_size"}
    other = get.adapted(names, {"positions": 128, "n_head": 7}).adapted(defaults={"size": 9})
    assert other.size("hidden_size") == 64
    assert other(int, "positions") == 128  # the default of a missing key
    assert other(int, "heads", None) is None  # a null is none
    assert other(int, "size") == 9
    with pytest.raises(ConfigError, match="'n_layer' is 0"):
        other.size("layers")
    section = other.section("more")
    assert section is get.section("more")
    assert section is not None
    assert section(int, "depth") == 1
    assert list(get.unread()) == [("config.json", "odd", 1)]
