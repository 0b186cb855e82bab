"""LoRA adapters as requests name them, and the routes that load and unload them, with vLLM's names."""

import msgspec
from quart import Response

from tgi.config import hub_environment
from tgi.errors import Forbidden, LoraNotFound, UnknownModel, ValidationError
from tgi.flags import LoraSource
from tgi.hub import fetch_model, lora_source
from tgi.hub_errors import HubError
from tgi.lifecycle import Lifecycle
from tgi.scheduler.loras import Lora, LoraError, Loras

from .call import Call, post, text_answer
from .service import Engine

_ERRORS = (400, 401, 403, 404, 413, 415, 503)


class LoadLoraRequest(msgspec.Struct):
    """The body of `/v1/load_lora_adapter`."""

    lora_name: str
    lora_path: str
    """Folder on the server's machine, or id on the Hub."""
    load_inplace: bool = False
    """Whether another adapter of that name is replaced."""


class UnloadLoraRequest(msgspec.Struct):
    """The body of `/v1/unload_lora_adapter`."""

    lora_name: str


def lora_of_model(engine: Engine, model: str | None) -> Lora | None:
    """Return the adapter that a `model` of `/v1` names; None: the model itself.

    Where there can be adapters, any other name raises UnknownModel: the text would not be the one meant.
    """
    loras, info = engine.scheduler.loras, engine.model
    if not model or not loras.slots.count or model in ("tgi", info.served_name, info.model_id):
        return None
    lora = loras.get(model) or loras.get(model.removesuffix(":latest"))  # as Ollama's clients say
    if lora is None:
        raise UnknownModel(model)
    return lora


def lora_of_id(engine: Engine, adapter_id: str) -> Lora:
    """Return the adapter that an `adapter_id` names. Raises ValidationError."""
    loras = engine.scheduler.loras
    lora = loras.get(adapter_id)
    if lora is None:
        known = ", ".join(one.name for one in loras)
        raise ValidationError(
            f"`adapter_id`: no LoRA adapter is named {adapter_id!r}; "
            + (f"loaded are {known}" if known else "none is loaded")
        )
    return lora


async def load_lora(call: Call[LoadLoraRequest]) -> Response:
    """Answer `/v1/load_lora_adapter`. Raises Forbidden, LoraNotFound and ValidationError."""
    name, place = call.body.lora_name, call.body.lora_path
    loras, info = _changeable(call), call.engine.model
    if not name or not place:
        raise ValidationError("Both 'lora_name' and 'lora_path' must be provided.")
    if name in ("tgi", info.served_name, info.model_id):
        raise ValidationError(f"{name!r} is the name of the model itself")
    source = lora_source(call.service.options, LoraSource(name, place))
    try:
        folder = await fetch_model(source, Lifecycle(), hub_environment())
        await loras.load(name, place, str(folder), replace=call.body.load_inplace)
    except HubError as error:
        raise LoraNotFound(str(error)) from error
    except LoraError as error:
        raise ValidationError(str(error)) from error
    return text_answer(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora(call: Call[UnloadLoraRequest]) -> Response:
    """Answer `/v1/unload_lora_adapter`; texts that use the adapter go on. Raises Forbidden, UnknownModel."""
    name = call.body.lora_name
    if not _changeable(call).unload(name):
        raise UnknownModel(name)
    return text_answer(f"Success: LoRA adapter '{name}' removed successfully.")


def _changeable(call: Call[LoadLoraRequest] | Call[UnloadLoraRequest]) -> Loras:
    """Return the adapters if clients may change them. Raises Forbidden."""
    loras = call.engine.scheduler.loras
    if not call.service.options.allow_runtime_lora_updating:
        raise Forbidden("LoRA adapters are not loaded at run time without --allow-runtime-lora-updating")
    if not loras.slots.count:
        raise Forbidden("no memory is reserved for LoRA adapters without --enable-lora")
    return loras


ROUTES = (
    post(
        "/v1/load_lora_adapter", "load_lora_adapter", "Load a LoRA adapter, as vLLM does", load_lora,
        LoadLoraRequest, text=True, errors=_ERRORS,
        example={"lora_name": "sql", "lora_path": "/adapters/sql"},
    ),
    post(
        "/v1/unload_lora_adapter", "unload_lora_adapter", "Unload a LoRA adapter, as vLLM does", unload_lora,
        UnloadLoraRequest, text=True, errors=_ERRORS, example={"lora_name": "sql"},
    ),
)  # fmt: skip
