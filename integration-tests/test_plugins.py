"""What `tgi serve` says of plugins: in its log, and where it cannot start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.installed import install, offer

HOOK = "from tgi.plugins import hookimpl\n@hookimpl\n"


@pytest.fixture
def refused(start: Any, checkpoint: Path, tmp_path: Path) -> Callable[[], list[str]]:
    """Serve a model of the architecture OurForCausalLM with what is installed in tmp_path, which fails; what
    has been logged."""

    def serve() -> list[str]:
        shutil.copytree(checkpoint, tmp_path / "model")
        config = json.loads((checkpoint / "config.json").read_text())
        config |= {"architectures": ["OurForCausalLM"], "model_type": "our"}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        server = start("tgi serve", {"PYTHONPATH": str(tmp_path)}, model_id=tmp_path / "model")
        assert server.wait_exit() == 1
        lines: list[str] = server.output().splitlines()
        return lines

    return serve


def test_a_model_that_two_adapters_offer(refused: Callable[[], list[str]], tmp_path: Path) -> None:
    offer(tmp_path, "one-adapter", "OurForCausalLM")
    offer(tmp_path, "other-adapter", "OurForCausalLM")

    assert refused()[-1] == (
        "tgi: the architecture OurForCausalLM is offered by one-adapter 1.0 (plugin = one_adapter) and "
        "other-adapter 1.0 (plugin = other_adapter): keep one of them, `pip uninstall one-adapter` or "
        "`pip uninstall other-adapter`"
    )


def test_a_model_whose_adapter_is_broken(refused: Callable[[], list[str]], tmp_path: Path) -> None:
    install(tmp_path, "our-adapter", "import does_not_exist")

    lines = refused()

    assert "OurForCausalLM" in lines[-1]
    assert (
        "; plugin our-adapter 1.0 (plugin = our_adapter) is left out: it cannot be imported: "
        "ModuleNotFoundError: No module named 'does_not_exist'; reinstall it, or `pip uninstall our-adapter`"
    ) in lines[-1]


def test_a_model_whose_layers_cannot_be_imported(refused: Callable[[], list[str]], tmp_path: Path) -> None:
    """Which only ranks find out."""
    source = "from tgi_llama.plugin import read_config\nfrom tgi.plugins import Architecture, hookimpl\n"
    source += "@hookimpl\ndef tgi_architectures():\n"
    source += "    return [Architecture('OurForCausalLM', 'nowhere:Our', read_config)]\n"
    install(tmp_path, "our-adapter", source)

    reason = "nowhere:Our, which a plugin names, cannot be imported: No module named 'nowhere'"
    assert refused()[-1] == f"tgi: {reason}"


def test_others_are_served_and_hooks_are_traced(start: Any, tmp_path: Path) -> None:
    """With a plugin that cannot be imported, one that misspells its hook, and two that offer the same."""
    install(tmp_path, "broken-adapter", "import does_not_exist")
    install(tmp_path, "misspelt-adapter", HOOK + "def tgi_architecture(): return []")
    offer(tmp_path, "one-adapter", "OurForCausalLM")
    offer(tmp_path, "other-adapter", "OurForCausalLM")
    server = start(
        "tgi serve", {"PYTHONPATH": str(tmp_path), "TRACE_PLUGINS": "true"}, device="cpu"
    ).wait_ready()

    assert server.generate("x", max_new_tokens=2)["generated_text"]
    lines = server.output().splitlines()

    def said(text: str) -> int:
        return sum(text in line for line in lines)

    warning = "WARNING tgi.planning.setup: plugin"
    broken = f"{warning} broken-adapter 1.0 (plugin = broken_adapter) is left out: it cannot be"
    misspelt = f"{warning} misspelt-adapter 1.0 (plugin = misspelt_adapter) is left out: no hook is"
    assert (said(broken), said(misspelt), said("OurForCausalLM is offered by one-adapter")) == (1, 1, 1)
    assert (
        said("tgi.plugins.manager.trace: one-adapter 1.0 (plugin = one_adapter): tgi_architectures() gave")
        == 1
    )
    assert said("(builtin = tgi.device): tgi_devices() gave [[DeviceSpec(name='cpu', ") == 1
