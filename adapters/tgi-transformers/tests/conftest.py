"""Tests here run families by way of transformers that have adapters of their own."""

import pytest

from tgi.plugins import ANY, architectures


@pytest.fixture(autouse=True)
def _no_other_adapter_but_llamas(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(plugins):
        known = architectures(plugins)
        return {name: known[name] for name in ("LlamaForCausalLM", ANY)}

    for place in ("tgi.plugins.lookup", "tgi.layers.loading"):
        monkeypatch.setattr(f"{place}.architectures", few)
