"""The start of a server whose model gives embeddings or scores instead of texts."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from tgi.api.service import Embedder, ModelInfo, Service
from tgi.config import Options
from tgi.lifecycle import Phase
from tgi.planning.setup import DEMO_ID
from tgi.plugins import ConfigError, JsonReader
from tgi.plugins.lookup import read_config_json
from tgi.pooler import open_pooler
from tgi.protocol.pooling import Pooling
from tgi.text.tokenizer import Tokenizer
from tgi.text.tokenizer_files import TokenizerError, read_json

log = logging.getLogger(__name__)
BATCH_TOKENS = 8192
"""Maximum tokens of a batch, unless --max-batch-prefill-tokens is given."""
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of sentence-transformers' 1_Pooling/config.json, in the order in which it joins their vectors."""
_PADDED_POSITIONS = (
    "camembert",
    "data2vec-text",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Types of models that count positions from the number of the padding token, plus 1."""


def read_pooling(folder: Path, options: Options) -> Pooling | None:
    """Return how the model of a folder makes vectors; None if it continues texts.

    That is told by sentence-transformers' modules.json, or by a name in config.json like BertModel or
    BertForSequenceClassification. Raises ConfigError.
    """
    data = read_config_json(folder)
    name = next((one for one in data.get("architectures") or () if isinstance(one, str)), "")
    modules = _modules(folder)
    ranks = name.endswith("ForSequenceClassification")
    known = (
        name.endswith("Model")
        and "model_type" in data
        and not {"vision_config", "audio_config"} & data.keys()
    )
    if not (modules or ranks or known) or data.get("is_encoder_decoder"):
        return None
    if ranks and (labels := len(data.get("id2label") or ()) or data.get("num_labels", 2)) != 1:
        raise ConfigError(f"{folder}: a classifier with {labels} labels is not served; a reranker has one")
    if options.device not in ("auto", "cpu") or (options.num_shard or 1) > 1:
        raise ConfigError(f"{folder}: embeddings are computed on --device cpu, and on one rank")
    known_modules = {"Transformer", "Pooling", "Dense", "Normalize"}
    if unknown := [kind for kind, _ in modules if kind not in known_modules]:
        raise ConfigError(f"{folder}/modules.json: {unknown[0]} is not supported")
    texts = _read(folder / "sentence_bert_config.json")
    tokenizer = _read(folder / "tokenizer_config.json")
    told = _read(folder / "config_sentence_transformers.json")
    pooled = next((path for kind, path in modules if kind == "Pooling"), None)
    return Pooling(
        folder=str(folder),
        ranks=ranks,
        modes=("mean",) if pooled is None else _pooling_modes(folder / pooled / "config.json"),
        dense=tuple(path for kind, path in modules if kind == "Dense"),
        dtype="float32" if options.dtype is None else options.compute_dtype,
        threads=options.threads,
        max_tokens=_longest(data, tokenizer, texts, options),
        types="token_type_ids" in tokenizer.get("model_input_names", ["token_type_ids"]),
        lowers=bool(texts.get("do_lower_case")),
        prompts={key: text for key, text in (told.get("prompts") or {}).items() if text},
        default_prompt=told.get("default_prompt_name"),
        dimensions=tuple(data.get("matryoshka_dimensions") or ()),
    )


def _read(path: Path, optional: bool = True) -> dict[str, Any]:
    """Do as `read_json`, but raise ConfigError."""
    try:
        return read_json(path, optional)
    except (OSError, TokenizerError) as error:
        raise ConfigError(str(error)) from error


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the kinds and paths in modules.json; none without the file."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        return [(one["type"].rpartition(".")[2], one["path"]) for one in json.loads(path.read_bytes())]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} makes no sense: {error!r}") from error


def _pooling_modes(path: Path) -> tuple[str, ...]:
    settings = JsonReader(_read(path, optional=False), str(path))
    if not settings(bool, "include_prompt", True):
        raise ConfigError(f"{path}: 'include_prompt' is false, which is not supported")
    mode = settings.data.get("pooling_mode")
    named = [mode] if isinstance(mode, str) else mode or []
    modes = tuple(named) or tuple(mode for key, mode in _MODES.items() if settings(bool, key, False))
    if unknown := [mode for mode in modes if mode not in _MODES.values()]:
        raise ConfigError(f"{path}: the pooling mode {unknown[0]!r} is not supported")
    return modes or ("mean",)


def _longest(
    data: Mapping[str, Any], tokenizer: Mapping[str, Any], texts: Mapping[str, Any], options: Options
) -> int:
    """Return the tokens of the longest text: the least of what the model's files and the options say."""
    positions = data.get("max_position_embeddings")
    if positions and data.get("model_type") in _PADDED_POSITIONS:
        positions -= (data.get("pad_token_id") or 0) + 1
    said = [
        positions, texts.get("max_seq_length"), tokenizer.get("model_max_length"),
        options.max_input_tokens, options.max_total_tokens,
    ]  # fmt: skip
    return int(min([limit for limit in said if isinstance(limit, int | float) and limit > 0] or [512]))


async def run_embedder(service: Service, options: Options, pooling: Pooling, tokenizer: Tokenizer) -> None:
    """Load the model, put it into the service, and answer for ever.

    Raises ConfigError or EngineError. Leaving it in any way ends the process of the model.
    """
    service.lifecycle.enter("loading weights")
    limits = service.limits = attrs.evolve(
        service.limits, max_input_tokens=pooling.max_tokens, max_total_tokens=pooling.max_tokens
    )
    name = options.model_id or DEMO_ID
    async with open_pooler(pooling, options.max_batch_prefill_tokens or BATCH_TOKENS) as pooler:
        service.embedder = Embedder(
            pooler=pooler,
            pooling=pooling,
            tokenizer=tokenizer,
            limits=limits,
            model=ModelInfo(
                model_id=name,
                served_name=options.served_model_name or name,
                pipeline_tag="text-classification" if pooling.ranks else "feature-extraction",
                dtype=pooling.dtype,
                device="cpu",
                vocab_size=tokenizer.vocab_size,
            ),
        )
        service.lifecycle.change(Phase.READY)
        what = "scores of pairs" if pooling.ranks else f"embeddings of {pooler.size} numbers"
        how = "" if pooling.ranks else f" ({' and '.join(pooling.modes)} over the tokens)"
        log.info(
            "Connected: %s in %s gives %s%s, of at most %d tokens, at %s",
            name, pooling.dtype, what, how, pooling.max_tokens, service.url,
        )  # fmt: skip
        await pooler.run()
