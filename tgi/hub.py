"""Turns the id of a model into a local folder with config.json, *.safetensors and tokenizer.json.

A folder that has all three is used as it is. Anything else (looking an id up, downloading, converting old
formats) happens in a child process, `python -m tgi.hub`, so that the server answers meanwhile, stays small,
and can leave at any time. This module knows files, not their contents.
"""

import contextlib
import errno
import importlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import attrs
import msgspec

from tgi.child import start_child
from tgi.lifecycle import Lifecycle
from tgi.model_files import FOREIGN, own_files
from tgi.parent import Parent

DESCRIPTIONS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
UNWANTED = (*FOREIGN, "original/*", "*.index.json.bak")
_POLL_SECONDS = 1.0
_GGUF = (
    "{} is GGUF, the format of llama.cpp, which this server does not read: serve the model that it was made "
    "from, with *.safetensors"
)

OnProgress = Callable[["Stage"], None]


class HubError(Exception):
    """The model cannot be fetched; the message is one line that says what to do."""


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


def find_model(source: Source, on_progress: OnProgress = lambda _: None) -> Path:
    """Return the folder of a model, downloaded and converted where necessary.

    Blocks; importing torch and transformers if it has to convert. Raises HubError.
    """
    folder = Path(source.model_id).expanduser()
    if folder.is_file() and folder.suffix == ".gguf":
        raise HubError(_GGUF.format(folder))
    if not folder.is_dir():
        folder = _download(source, on_progress)
    return _converted(folder, source, on_progress)


def find_config(source: Source) -> Path:
    """Return the folder of a model after downloading its config.json only. Blocks; raises HubError."""
    folder = Path(source.model_id).expanduser()
    if folder.name == "config.json":
        folder = folder.parent
    if not folder.is_dir():
        _check_id(source)
        folder = _snapshot(source, "config.json")
    if not (folder / "config.json").is_file():
        raise _no_model(folder, source)
    return folder


async def fetch_model(source: Source, lifecycle: Lifecycle, environment: Mapping[str, str]) -> Path:
    """Do what `find_model` does in a child process with `environment`; cancelling it kills the child."""
    folder = Path(source.model_id).expanduser()
    if folder.is_dir() and _is_complete(folder, source):
        return folder
    lifecycle.enter("looking for the model")
    description = msgspec.json.encode(source, enc_hook=str).decode()
    environment = {**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
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


def _converted(folder: Path, source: Source, on_progress: OnProgress) -> Path:
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
    key = sha256(f"{folder.resolve()} {folder.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = _cache_folder(source) / "tgi-converted" / f"{folder.name}-{key}"
    if _is_complete(target, source):
        return target
    on_progress(Stage("converting the model"))
    work = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        work.mkdir(parents=True)
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".bin":
                (work / path.name).symlink_to(path.resolve())
        _convert(folder, work)
        work.rename(target)
    except OSError as error:
        if not _is_complete(target, source):  # else another server was faster
            raise _disk_error(error, target) from error
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
            f"{folder} is an adapter (LoRA){named}, no model by itself: merge it into its base model "
            "(merge_and_unload of peft), and serve the result"
        )
    if any(folder.glob("*.gguf")) or "gguf" in source.model_id.lower():
        return HubError(_GGUF.format(source.model_id))
    return None


def _convert(folder: Path, target: Path) -> None:
    """Make the files that `target` lacks from those of `folder`. Raises HubError."""
    # By name: it imports torch, which is not for the server process.
    converter = importlib.import_module("tgi.weights.convert")
    try:
        converter.convert(folder, target)
    except converter.ConversionError as error:
        raise HubError(f"{folder} lacks files that cannot be made of what it has: {error}") from error


def _cache_folder(source: Source) -> Path:
    if source.cache is not None:
        return source.cache.expanduser()
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _check_id(source: Source) -> None:
    if source.model_id.startswith(("/", ".", "~")) or source.model_id.count("/") > 1:
        raise HubError(f"there is no folder {source.model_id}")


def _download(source: Source, on_progress: OnProgress) -> Path:
    _check_id(source)
    with _progress(source, _cache_folder(source), on_progress):
        if source.load_format == "dummy":
            return _snapshot(source, *DESCRIPTIONS)
        folder = _snapshot(source, *DESCRIPTIONS, f"*{source.extension}")
        if not own_files(folder, source.extension) and source.load_format == "auto":
            other = ".bin" if source.extension == ".safetensors" else ".safetensors"
            folder = _snapshot(source, *DESCRIPTIONS, f"*{other}")
    return folder


def _snapshot(source: Source, *patterns: str) -> Path:
    """Return the folder of a repository's files that match, downloading those that are not in the cache."""
    from huggingface_hub import snapshot_download

    with _hub_errors(source):
        folder = snapshot_download(
            source.model_id,
            revision=source.revision,
            cache_dir=_cache_folder(source),
            allow_patterns=list(patterns),
            ignore_patterns=list(UNWANTED),
        )
    return Path(folder)


@contextlib.contextmanager
def _progress(source: Source, cache: Path, on_progress: OnProgress) -> Iterator[None]:
    """Report how many bytes are on disk while the body downloads."""
    repository = cache / f"models--{source.model_id.replace('/', '--')}" / "blobs"
    name = f"downloading {source.model_id}"
    on_progress(Stage(name))
    finished = threading.Event()

    def count() -> None:
        total = _download_size(source)
        while not finished.wait(_POLL_SECONDS):
            done = sum(path.stat().st_size for path in repository.glob("*") if path.exists())
            on_progress(Stage(name, min(done, total) if total else done, total))

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()


def _download_size(source: Source) -> int:
    """Return the bytes of the weights on the Hub, or 0 if it does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(source.model_id, revision=source.revision, files_metadata=True, timeout=10)
    except (HfHubHTTPError, OfflineModeIsEnabled, HFValidationError, OSError):
        return 0
    files = [file for file in info.siblings or () if file.rfilename.endswith(source.extension)]
    return sum(file.size or 0 for file in files)


@contextlib.contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    """Turn exceptions of huggingface_hub into a HubError that says what to do."""
    from huggingface_hub import errors

    name = source.model_id if source.revision is None else f"{source.model_id} ({source.revision})"
    absent = f"{name} is not in the cache, and the Hub cannot be reached (HF_HUB_OFFLINE, HF_ENDPOINT)"
    reasons: dict[type[Exception], str] = {  # the first that fits
        errors.HFValidationError: f"{name!r} is neither a folder nor an id on the Hub",
        errors.GatedRepoError: f"{name} is gated: accept its conditions on the Hub, and set HF_TOKEN",
        errors.RevisionNotFoundError: f"{source.model_id} has no revision {source.revision}",
        errors.RepositoryNotFoundError: "there is no folder "
        f"{name}, and no such model on the Hub that HF_TOKEN may read",
        errors.LocalEntryNotFoundError: absent,
        errors.OfflineModeIsEnabled: absent,
    }
    try:
        yield
    except tuple(reasons) as error:
        raise HubError(next(text for kind, text in reasons.items() if isinstance(error, kind))) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise HubError(f"the Hub wants a token that may read {name}: set HF_TOKEN") from error
        raise HubError(f"the Hub refuses {name}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise _disk_error(error, _cache_folder(source)) from error


def _disk_error(error: OSError, folder: Path) -> HubError:
    if error.errno == errno.ENOSPC:
        return HubError(f"no space left in {folder}: set HUGGINGFACE_HUB_CACHE to a larger disk")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return HubError(f"{folder} cannot be written: set HUGGINGFACE_HUB_CACHE to a folder that can")
    return HubError(f"the model cannot be fetched: {' '.join(str(error).split())}")


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
