"""Models of transformers for tgi, on the paged KV cache. Imported in rank processes only."""

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import KVLayer
from tgi.layers import Batch, Build, Head
from tgi.layers.cache_layers import CacheLayer
from tgi.plugins import ConfigError
from tgi.plugins.architecture import refuse_unread
from tgi.weights import Checkpoint, CheckpointError, DummyWeights, Outline
from tgi.weights.formats import DenseWeight, Rounding

from .fields import HARMLESS, NEUTRAL, unread
from .interface import PAGED, TRIAL, Attending, Current, goes_through
from .plugin import TransformersConfig
from .trial import TOKENS, Trial

_ATTENTION = frozenset({"attention", "full_attention", "sliding_attention"})
"""Types of layers that keep nothing but keys and values."""
_LEAK = 0.1
"""Greatest change of a token's features by an earlier one in a trial, where attention is to oneself alone, in
standard deviations: experts that multiply more or fewer tokens may round otherwise."""


@attrs.frozen(eq=False)
class PagedLayer:
    """Attention of one layer, kept by the module that transformers calls it for."""

    spec: AttentionSpec
    kv: KVLayer


@attrs.define(eq=False)
class Paged:
    """Attention over the KV cache in one step."""

    device: Device
    batch: Batch

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        """[1, heads, T, head_dim] to [1, T, heads, head_dim]; values may have fewer features than keys."""
        layer, size = module.tgi_layer, value.shape[-1]
        if size < key.shape[-1]:
            value = nn.functional.pad(value, (0, key.shape[-1] - size))
        query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        self.device.store_kv(layer.kv, key, value, self.batch)
        out = self.device.attention(layer.kv, query, key, value, self.batch, layer.spec)
        return out[None, ..., :size].contiguous()


class TransformersModel(nn.Module):
    """Any model of transformers: a decoder and a head. Without numbers it has neither, and cannot run."""

    def __init__(self, config: TransformersConfig, build: Build) -> None:
        super().__init__()
        if build.shard.size > 1:
            raise ConfigError(
                f"{config.architecture} runs by way of transformers, on one rank only; "
                f"--num-shard {build.shard.size} needs an adapter of its own"
            )
        whole = _load(config, build)
        for name, tensor in whole.named_parameters(remove_duplicate=False):
            build.keep(name, tensor.shape, tensor)
        self._device = build.device
        if isinstance(build.weights, Outline):
            cap = 1.0 if config.softcap else None  # its value is not in a sketch
            specs = [AttentionSpec(1.0, window, softcap=cap) for window in config.windows]
            attending: Mapping[int, nn.Module] = {}
        else:
            specs, attending, self.decoder, self.head = _take_apart(whole, config, build.device)
            self.decoder.inner.set_attn_implementation(PAGED)
            self.decoder.inner.config._attn_implementation = PAGED  # GPT-Neo does not let others set it
        for layer, (spec, window) in enumerate(zip(specs, config.windows, strict=True)):
            heads = config.num_kv_heads
            kv = build.attend(layer, spec, CacheLayer(window, heads, heads, config.head_dim))
            if layer in attending:
                attending[layer].tgi_layer = PagedLayer(spec, kv)  # type: ignore[assignment]
        _speed_up(self if hasattr(self, "decoder") else whole, build)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of `batch.last`, [n, vocab_size]."""
        paged = Paged(self._device, batch)
        features = self.decoder(batch.tokens, batch.positions, paged)
        return self.head(features, batch)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The part of a model before the head."""

    def __init__(self, inner: PreTrainedModel) -> None:
        super().__init__()
        self.inner = inner
        self.current = Current()
        for module in inner.modules():
            module.tgi = self.current  # type: ignore[assignment]

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attend: Attending,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T] to [T, hidden_size]."""
        self.current.attend = attend
        given = {"input_ids": tokens[None], "position_ids": positions[None], "attention_mask": mask}
        features: torch.Tensor = self.inner(**given, use_cache=False).last_hidden_state
        return features[0]


class TransformersHead(Head):
    """The part of a model after its decoder, in whose place `whole` has a `_Given`."""

    def __init__(self, whole: PreTrainedModel, size: int, config: TransformersConfig, device: Device) -> None:
        nn.Module.__init__(self)  # a Head reads weights, of which transformers has read all
        self.size = size
        self._device = device
        self._vocab_size = config.vocab_size
        self.whole = whole

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        if not x.shape[0]:
            return x.new_empty(0, self._vocab_size)
        logits: torch.Tensor = self.whole(inputs_embeds=x[None], use_cache=False).logits
        return logits[0]


class _Given(nn.Module):
    """Stand-in for a decoder that returns the embeddings it gets."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> "_Output":
        return _Output(last_hidden_state=inputs_embeds)


class _Output(BaseModelOutputWithPast):
    """Output of a decoder in which everything else that a head may pass on is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class DeviceLinear(nn.Module):
    """A linear layer computed by the device."""

    def __init__(self, build: Build, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self._device = build.device
        self.weight = build.prepare(DenseWeight(weight))
        build.widest = max(build.widest, weight.shape[0])
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        y = self._device.multiply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return y.view(*x.shape[:-1], y.shape[-1])


def _load(config: TransformersConfig, build: Build) -> PreTrainedModel:
    """Build the model by transformers. Raises ConfigError and CheckpointError."""
    trial = Trial(config)
    if isinstance(build.format, Rounding):
        name = build.format.name
        raise ConfigError(
            f"--quantize {name}: {config.architecture} runs by way of transformers, which cannot "
            "round weights; leave --quantize out"
        )
    kind: Any = getattr(transformers, config.architecture)
    if not goes_through(kind):
        raise trial.error("its attention does not go through transformers' interface for others")
    try:
        model: Any
        settings = _settings(kind, config.json)
        if kind._is_stateful and not _ATTENTION.issuperset(getattr(settings, "layer_types", None) or ("?",)):
            raise trial.error("it keeps another state than keys and values")
        neutral = NEUTRAL.get(settings.model_type, {})
        refuse_unread(config.architecture, unread(settings, kind, config.json), HARMLESS, neutral)
        if build.device.torch_device.type not in ("cpu", "cuda", "meta"):
            settings._experts_implementation = "batched_mm"  # others count tokens per expert by integers
        if isinstance(build.weights, Checkpoint):
            model = _read(kind, settings, build.weights, build.dtype)
        elif isinstance(build.weights, DummyWeights):
            model = kind._from_config(settings, torch_dtype=build.dtype, attn_implementation=TRIAL)
        else:
            build.weights.skip_check()  # transformers finds the faults of a checkpoint itself
            with torch.device("meta"):
                model = kind._from_config(settings, torch_dtype=build.dtype, attn_implementation=TRIAL)
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:  # odd settings
        raise trial.error(f"{type(error).__name__}: {error}") from error
    model = model.eval().to(build.device.torch_device)
    assert isinstance(model, PreTrainedModel)
    return model


def _settings(kind: Any, json: Mapping[str, Any]) -> Any:
    """Return the settings by the class of their "model_type", whose names and defaults may be its own."""
    name = str(json.get("model_type"))
    known = name in transformers.CONFIG_MAPPING
    return (transformers.CONFIG_MAPPING[name] if known else kind.config_class).from_dict(dict(json))


def _read(kind: Any, settings: Any, weights: Checkpoint, dtype: torch.dtype) -> Any:
    """Load the model by transformers, which knows the names of tensors in old checkpoints."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, report = kind.from_pretrained(
            weights.folder,
            config=settings,
            torch_dtype=dtype,
            attn_implementation=TRIAL,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{weights.folder}: transformers cannot read it: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(weights.missing(missing))
    if other := report["mismatched_keys"]:
        first = min(other)
        fault = f"{first!r} has another shape than config.json says"  # all that transformers 4 tells
        if not isinstance(first, str):
            name, found, said = first
            fault = f"{name!r} has shape {list(found)}, config.json says {list(said)}"
        raise CheckpointError(f"{weights.folder}: {fault} (and {len(other) - 1} more)")
    for name in set(weights.unread) - set(report["unexpected_keys"]):
        weights.dismiss(name)
    return model


@torch.inference_mode()
def _take_apart(
    whole: PreTrainedModel, config: TransformersConfig, device: Device
) -> tuple[list[AttentionSpec], Mapping[int, nn.Module], Decoder, TransformersHead]:
    """Return the attention of all layers, their modules, the decoder, and the head.

    The head is `whole` without its decoder.

    Raises ConfigError if a short run shows that the model cannot be run so.
    """
    trial = Trial(config)
    model: Any = whole
    inner = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    name = next((name for name, module in whole.named_modules() if module is inner), "")
    if not name or "position_ids" not in inspect.signature(inner.forward).parameters:
        raise trial.error("it has no decoder that takes positions")
    decoder = Decoder(inner)
    tokens = torch.arange(TOKENS, device=device.torch_device)
    try:
        decoder.current.attend = trial
        given = {"input_ids": tokens[None], "position_ids": tokens[None]}
        every = torch.ones_like(tokens[None])  # without it, transformers 4 looks for sequences in a row
        wanted = whole(**given, attention_mask=every, use_cache=False).logits[0]
        specs = trial.finish()
        whole.set_submodule(name, _Given())
        features = decoder(tokens, tokens, Trial(config), every)
        head = TransformersHead(whole, features.shape[-1], config, device)
        got = head._logits(features)
        other = decoder(tokens.clamp_min(1), tokens, Trial(config), every)  # with another first token
    except (
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
        NotImplementedError,
    ) as error:
        raise trial.error(f"{type(error).__name__}: {error}") from error
    if got.shape != (TOKENS, config.vocab_size) or not torch.equal(got, wanted):
        raise trial.error("it does more than its decoder and its head")
    if (features - other)[1:].abs().max() > _LEAK * features.std():
        raise trial.error("a token depends on others not by attention alone: it keeps another state")
    return specs, trial.modules, decoder, head


def _speed_up(model: nn.Module, build: Build) -> None:
    """Let the device compute the linear layers."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, DeviceLinear(build, module.weight.data, module.bias))
        elif type(module) is Conv1D:
            model.set_submodule(name, DeviceLinear(build, module.weight.data.T, module.bias))
