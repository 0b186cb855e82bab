"""Makes the simulated card the `hpu` device of this process, and removes it again."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from . import bridge, collectives, dispatch, graphs, kernels, pinning
from .card import Card
from .operations import ALLOWED
from .profile import Profile

_libraries: list[torch.library.Library] = []
_torch_compile, _torch_set_stance = torch.compile, torch.compiler.set_stance


def install(profile: Profile | str) -> Card:
    """Open a new card, let `import habana_frameworks` find the stand-in, and return the card.

    `profile` may be a name that `Profile.of` takes. Tensors of an earlier card move to the new one.
    """
    card = Card(Profile.of(profile) if isinstance(profile, str) else profile)
    if not _libraries:
        _register()
    dispatch.use_card(card)
    bridge.put(bridge.build(card))
    collectives.watch()
    pinning.watch()
    torch.compile = _compile
    torch.compiler.set_stance = _set_stance
    return card


def uninstall() -> None:
    """Remove the card and the stand-in; torch keeps knowing a device named hpu."""
    dispatch.use_card(None)
    bridge.remove()
    collectives.unwatch()
    pinning.unwatch()
    torch.compile = _torch_compile
    torch.compiler.set_stance = _torch_set_stance


def _set_stance(*_: Any, **__: Any) -> AbstractContextManager[None]:
    """Do nothing: Dynamo, which this is for, is not simulated."""
    return nullcontext()


def _register() -> None:
    """Register with torch, which a process can do only once."""
    _setup_privateuseone_for_python_backend("hpu")
    fallback = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    fallback.fallback(_fallback, "PrivateUse1")  # type: ignore[no-untyped-call]
    operators = torch.library.Library("hpu", "DEF")  # type: ignore[no-untyped-call]
    kernels.define_operators(operators)
    ALLOWED.update(kernels.DTYPES)
    collectives.register_backend()
    native = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    native.impl("one_hot", _one_hot, "AutogradPrivateUse1")  # type: ignore[no-untyped-call]
    _libraries.extend((fallback, operators, native))
    os.register_at_fork(after_in_child=_forked)


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    return dispatch.run(op, args, kwargs)


def _one_hot(*args: Any) -> Any:
    return dispatch.run(torch.ops.aten.one_hot.default, args, {})


def _forked() -> None:
    for card in dispatch._cards:
        card.forked = True


def _compile(model: Any = None, **options: Any) -> Any:
    if options.get("backend") != "hpu_backend" or not dispatch._cards:
        return _torch_compile(model, **options)
    return graphs.compile_for_hpu(model, **options)
