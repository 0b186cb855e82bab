"""Turns the id of a model into a local folder with config.json, *.safetensors and tokenizer.json.

A folder that has all three is used as it is. Anything else (looking an id up, downloading, converting old
formats) happens in a child process, `python -m tgi.hub`, so that the server answers meanwhile, stays small,
and can leave at any time. This module knows files, not their contents.
"""

import contextlib
import importlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import attrs
import msgspec

from tgi.child import start_child
from tgi.config import Options
from tgi.flags import LoraSource
from tgi.hub_errors import HubError, disk_error, explained
from tgi.lifecycle import Lifecycle
from tgi.model_files import FOREIGN, own_files
from tgi.parent import Parent

DESCRIPTIONS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
UNWANTED = (*FOREIGN, "original/*", "*.index.json.bak")
_REPORT_SECONDS = 0.5
_VOCABULARIES = ("*.model", "*.tiktoken", "vocab.json", "vocab.txt", "tekken.json")
"""Patterns of the files that transformers makes a tokenizer.json of."""
_GGUF = (
    "{} is GGUF, the format of llama.cpp: serve one file by a path that ends in .gguf, or the model that "
    "it was made from, with *.safetensors"
)
_ORIGINAL = (
    "{} has its makers' own format (params.json, consolidated.*), which this server does not read: serve the "
    "model in the format of transformers, with config.json and model*.safetensors"
)

OnProgress = Callable[["Stage"], None]


class Stage(msgspec.Struct, frozen=True, tag=True):
    """Progress of the child process."""

    name: str
    """Activity for people: "downloading org/model"."""
    done: int = 0
    """Bytes that have arrived."""
    total: int = 0
    """Bytes to download; 0 if unknown."""


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """Success of the child process."""

    folder: str
    """Path of the complete model."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Failure of the child process."""

    reason: str
    """Message of a HubError."""


@attrs.frozen
class Source:
    """Place and form of a model."""

    model_id: str
    """Folder, or id on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; None for the main branch."""
    cache: Path | None = None
    """Folder of the Hub's cache; None for huggingface_hub's default."""
    extension: str = ".safetensors"
    """Preferred extension of weight files."""
    load_format: str = "auto"
    """"auto"; "safetensors" to convert no other weights; "dummy" if no weights are needed."""
    lora: bool = False
    """Whether it is a LoRA adapter."""


def lora_source(options: Options, lora: LoraSource) -> Source:
    """Return the source of a LoRA adapter that the options name."""
    return Source(lora.place, lora.revision, options.huggingface_hub_cache, lora=True)


def find_model(source: Source, on_progress: OnProgress | None = None) -> Path:
    """Return the folder of a model, downloaded and converted where necessary.

    Blocks; importing torch and transformers if it has to convert. Without `on_progress`, progress bars show
    a download on a terminal. Raises HubError.
    """
    folder = Path(source.model_id).expanduser()
    if source.lora:
        return find_lora(source)
    if folder.is_file() and folder.suffix == ".gguf":
        return _made(folder, source, on_progress, lambda work: _converter().convert_gguf(folder, work))
    if not folder.is_dir():
        folder = _download(source, on_progress)
    return _converted(folder, source, on_progress)


def find_lora(source: Source) -> Path:
    """Return the folder of a LoRA adapter, downloaded where necessary. Blocks; raises HubError."""
    folder = Path(source.model_id).expanduser()
    if folder.is_dir():
        return folder
    _check_id(source)
    folder = _snapshot(source, "adapter_config.json", "adapter_model.safetensors", unwanted=())
    if not (folder / "adapter_model.safetensors").exists():
        folder = _snapshot(source, "adapter_config.json", "adapter_model.bin", unwanted=())
    return folder


def find_config(source: Source) -> Path:
    """Return the folder of a model after downloading its config.json only. Blocks; raises HubError."""
    folder = Path(source.model_id).expanduser()
    if folder.name == "config.json":
        folder = folder.parent
    if folder.is_file() and folder.suffix == ".gguf":
        return find_model(source)
    if not folder.is_dir():
        _check_id(source)
        folder = _snapshot(source, "config.json")
    if not (folder / "config.json").is_file():
        raise _no_model(folder, source)
    return folder


async def fetch_model(source: Source, lifecycle: Lifecycle, environment: Mapping[str, str]) -> Path:
    """Do what `find_model` does in a child process with `environment`; cancelling it kills the child."""
    folder = Path(source.model_id).expanduser()
    if folder.is_dir() and (source.lora or _is_complete(folder, source)):
        return folder
    lifecycle.enter(f"looking for the {'LoRA adapter' if source.lora else 'model'}")
    description = msgspec.json.encode(source, enc_hook=str).decode()
    child = await start_child("-m", "tgi.hub", description, environment=environment)
    async with contextlib.aclosing(child):
        while (payload := await child.receive()) is not None:
            match msgspec.json.decode(payload, type=Stage | Fetched | Refused):
                case Stage(name, done, total):
                    if name != lifecycle.stage:
                        lifecycle.enter(name)
                    lifecycle.done, lifecycle.total = done, total
                case Fetched(path):
                    return Path(path)
                case Refused(reason):
                    raise HubError(reason)
        raise HubError(f"looking for {source.model_id} {await child.ending()}")


def _is_complete(folder: Path, source: Source) -> bool:
    described = (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
    return described and (source.load_format == "dummy" or bool(own_files(folder, ".safetensors")))


def _converted(folder: Path, source: Source, on_progress: OnProgress | None) -> Path:
    """Return `folder` if it is complete, or a folder of links to its files beside the files that it lacks."""
    if not (folder / "config.json").is_file():
        raise _no_model(folder, source)
    if _is_complete(folder, source):
        return folder
    if source.load_format != "dummy" and not own_files(folder, ".safetensors"):
        if source.load_format == "safetensors":
            raise HubError(f"{folder} has no *.safetensors; other weights need --load-format auto")
        if not own_files(folder, ".bin"):
            raise _no_weights(folder, source)
    if not (folder / "tokenizer.json").is_file() and not _has_vocabulary(folder):
        raise HubError(
            f"{folder} has no tokenizer: neither tokenizer.json nor another vocabulary "
            f"({', '.join(_VOCABULARIES)}). Copy the tokenizer's files there from the model that this one "
            "was made of"
        )

    def fill(work: Path) -> None:
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".bin":
                (work / path.name).symlink_to(path.resolve())
        _converter().convert(folder, work)

    return _made(folder, source, on_progress, fill)


def _made(origin: Path, source: Source, on_progress: OnProgress | None, fill: Callable[[Path], None]) -> Path:
    """Return the folder of the cache for a folder or file that is no complete model, filled if it is new."""
    key = sha256(f"{origin.resolve()} {origin.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = _cache_folder(source) / "tgi-converted" / f"{origin.name}-{key}"
    if _is_complete(target, source):
        return target
    if on_progress is not None:
        on_progress(Stage("converting the model"))
    work = target.with_name(f"{target.name}.{token_hex(4)}")
    try:
        work.mkdir(parents=True)
        fill(work)
        work.rename(target)
    except _converter().ConversionError as error:
        raise HubError(f"{origin} lacks files that cannot be made of what it has: {error}") from error
    except OSError as error:
        if not _is_complete(target, source):  # else another server was faster
            raise disk_error(error, target) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _no_model(folder: Path, source: Source) -> HubError:
    """Return the error about a folder without config.json."""
    error = _other_format(folder, source)
    return error or HubError(f"{folder} has no config.json: it is no model")


def _no_weights(folder: Path, source: Source) -> HubError:
    error = _other_format(folder, source)
    return error or HubError(f"{folder} has no weights (*.safetensors or *.bin)")


def _other_format(folder: Path, source: Source) -> HubError | None:
    """Return the error about a folder that holds something else than a model that can be served."""
    if (folder / "adapter_config.json").is_file():
        try:
            adapter = msgspec.json.decode((folder / "adapter_config.json").read_bytes())
            base = adapter.get("base_model_name_or_path")
        except (ValueError, AttributeError, OSError):
            base = None
        named = f" of {base}" if base else ""
        return HubError(
            f"{folder} is an adapter (LoRA){named}, no model by itself: serve its base model with "
            f"--lora-adapters NAME={folder}"
        )
    if (folder / "params.json").is_file() or any(folder.glob("consolidated.*")):
        return HubError(_ORIGINAL.format(folder))
    if any(folder.glob("*.gguf")) or "gguf" in source.model_id.lower():
        return HubError(_GGUF.format(source.model_id))
    return None


def _has_vocabulary(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in _VOCABULARIES)


def _converter() -> Any:
    """Import what converts, by name: it needs torch, which is not for the server process."""
    return importlib.import_module("tgi.weights.convert")


def _cache_folder(source: Source) -> Path:
    if source.cache is not None:
        return source.cache.expanduser()
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _check_id(source: Source) -> None:
    if source.model_id.startswith(("/", ".", "~")) or source.model_id.count("/") > 1:
        raise HubError(f"there is no folder {source.model_id}")


def _download(source: Source, on_progress: OnProgress | None) -> Path:
    _check_id(source)
    if on_progress is not None:
        on_progress(Stage(f"downloading {source.model_id}"))
    if source.load_format == "dummy":
        return _snapshot(source, *DESCRIPTIONS, on_progress=on_progress)
    folder = _snapshot(source, *DESCRIPTIONS, f"*{source.extension}", on_progress=on_progress)
    if not own_files(folder, source.extension) and source.load_format == "auto":
        other = ".bin" if source.extension == ".safetensors" else ".safetensors"
        folder = _snapshot(source, *DESCRIPTIONS, f"*{other}", on_progress=on_progress)
    return folder


def _snapshot(
    source: Source,
    *patterns: str,
    on_progress: OnProgress | None = None,
    unwanted: Sequence[str] = UNWANTED,
) -> Path:
    """Return the folder of a repository's files that match, downloading those that are not in the cache.

    Without `on_progress`, huggingface_hub shows its own progress bars on a terminal.
    """
    from huggingface_hub import snapshot_download

    with explained(source.model_id, source.revision, _cache_folder(source)):
        folder = snapshot_download(
            source.model_id,
            revision=source.revision,
            cache_dir=_cache_folder(source),
            allow_patterns=list(patterns),
            ignore_patterns=list(unwanted),
            tqdm_class=None if on_progress is None else _bars(f"downloading {source.model_id}", on_progress),
        )
    return Path(folder)


def _bars(name: str, on_progress: OnProgress) -> type[Any]:
    """Return a class of progress bars for huggingface_hub that report bytes instead of showing them.

    There may be several of them, for what has arrived and what is on disk: the furthest one counts.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    furthest = 0

    class Bars(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False, "mininterval": _REPORT_SECONDS})

        def display(self, *_: Any, **__: Any) -> None:
            nonlocal furthest
            if self.unit == "B" and self.n > furthest:
                furthest = int(self.n)
                on_progress(Stage(name, furthest, max(furthest, int(self.total or 0))))

    return Bars


def _main() -> None:
    parent = Parent.of_this_process()
    parent.leave_together()

    def send(message: Stage | Fetched | Refused) -> None:
        parent.send(msgspec.json.encode(message))

    source = msgspec.json.decode(sys.argv[1], type=Source, dec_hook=lambda kind, value: kind(value))
    try:
        send(Fetched(str(find_model(source, send))))
    except HubError as error:
        send(Refused(str(error)))


if __name__ == "__main__":
    _main()
