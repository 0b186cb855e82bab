"""What pluggy does not check by itself: clashing names, misspelt hooks, plugins that cannot be imported."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pluggy
import pytest

from tgi.plugins import ConfigError, JsonReader, architectures, devices, load_plugins

ARCHITECTURE = """
from tgi.plugins import Architecture, hookimpl

@hookimpl
def tgi_architectures():
    return [Architecture({name!r}, "{module}:Model", lambda get: None)]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put distributions with one plugin module each on sys.path: install("name", "source")."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(name: str, source: str, entry: str = "plugin") -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tgi]\n{entry} = {name}\n")
        importlib.invalidate_caches()

    return put


def test_two_packages_may_choose_the_same_entry_point_name(install) -> None:  # type: ignore[no-untyped-def]
    install("plug_a", ARCHITECTURE.format(name="AForCausalLM", module="plug_a"))
    install("plug_b", ARCHITECTURE.format(name="BForCausalLM", module="plug_b"))

    assert {"AForCausalLM", "BForCausalLM"} <= set(architectures(load_plugins()))


def test_two_offers_of_one_architecture_name_both(install) -> None:  # type: ignore[no-untyped-def]
    install("plug_c", ARCHITECTURE.format(name="CForCausalLM", module="plug_c"))
    install("plug_d", ARCHITECTURE.format(name="CForCausalLM", module="plug_d"))

    with pytest.raises(ValueError, match=r"CForCausalLM: plug_[cd]:Model and plug_[cd]:Model"):
        architectures(load_plugins())


def test_a_plugin_that_cannot_be_imported_is_left_out(install, caplog) -> None:  # type: ignore[no-untyped-def]
    install("plug_e", "import does_not_exist")

    manager = load_plugins()

    assert not manager.has_plugin("plug_e:plugin")
    assert "plug_e:plugin cannot be imported" in caplog.text
    assert "cpu" in devices(manager)


def test_a_misspelt_hook_is_an_error(install) -> None:  # type: ignore[no-untyped-def]
    install("plug_f", "from tgi.plugins import hookimpl\n@hookimpl\ndef tgi_architecture(): return []\n")

    with pytest.raises(pluggy.PluginValidationError, match="unknown hook 'tgi_architecture'"):
        load_plugins()


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
    rope = get.section("rope")
    assert rope is not None
    assert rope(float, "factor") == 2.0
    assert get.section("none") is None
