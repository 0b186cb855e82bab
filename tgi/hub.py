"""Model id -> local folder with config.json, *.safetensors and tokenizer.json.

A folder that has all three is used as it is. Anything else (looking an id up, downloading, converting old
formats) happens in a child process, so that the server answers meanwhile, stays small, and can leave at any
time: `python -m tgi.hub …` reports on stdout, one JSON object a line. It knows files, not what is in them.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from hashlib import sha256
from pathlib import Path

import attrs
import trio

from tgi.lifecycle import Lifecycle

DESCRIPTIONS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
UNWANTED = ("original/*", "consolidated*", "training_args.bin", "optimizer.*", "*.index.json.bak")
_POLL_SECONDS = 1.0

Report = Callable[[str, int, int], None]
"""(stage, bytes done, bytes in total)"""


class HubError(Exception):
    """The model cannot be had; the message is one line that says what to do."""


@attrs.frozen
class Source:
    """Where a model comes from."""

    model_id: str
    """A folder, or an id on the Hub."""
    revision: str | None = None
    cache: Path | None = None
    """The Hub's cache; None: huggingface_hub's default."""
    extension: str = ".safetensors"
    """Kind of weight files to prefer."""
    load_format: str = "auto"
    """"safetensors": nothing is made of other weights; "dummy": no weights are needed."""


def find_model(source: Source, report: Report = lambda *_: None) -> Path:
    """The folder of the model, downloaded and converted where necessary. Blocks; raises HubError."""
    folder = Path(source.model_id).expanduser()
    if not folder.is_dir():
        folder = _download(source, report)
    return _converted(folder, source, report)


def find_config(source: Source) -> Path:
    """The folder of the model with its config.json; only that is downloaded. Blocks; raises HubError."""
    folder = Path(source.model_id).expanduser()
    if folder.name == "config.json":
        folder = folder.parent
    if not folder.is_dir():
        _check_id(source)
        folder = _snapshot(source, "config.json")
    if not (folder / "config.json").is_file():
        raise HubError(f"{folder} has no config.json: it is no model")
    return folder


async def fetch_model(source: Source, lifecycle: Lifecycle, environment: dict[str, str]) -> Path:
    """As `find_model`, in a child process with `environment`; cancelling it kills the child."""
    folder = Path(source.model_id).expanduser()
    if folder.is_dir() and _is_complete(folder, source):
        return folder
    lifecycle.enter("looking for the model")
    command = [sys.executable, "-m", "tgi.hub", json.dumps(attrs.asdict(source), default=str)]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    try:
        async with contextlib.aclosing(_lines(process)) as lines:
            async for line in lines:
                match json.loads(line):
                    case {"folder": found}:
                        return Path(found)
                    case {"error": message}:
                        raise HubError(message)
                    case {"stage": stage, "done": done, "total": total}:
                        if stage != lifecycle.stage:
                            lifecycle.enter(stage)
                        lifecycle.done, lifecycle.total = done, total
        raise HubError(f"looking for {source.model_id} ended with exit code {await process.wait()}")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _lines(process: trio.Process) -> AsyncGenerator[bytes, None]:
    buffer = b""
    assert process.stdout is not None, "it was opened with a pipe"
    async for data in process.stdout:
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield line


def _weights(folder: Path, suffix: str) -> list[Path]:
    found = sorted(folder.glob(f"*{suffix}"))
    return [path for path in found if not any(path.match(pattern) for pattern in UNWANTED)]


def _is_complete(folder: Path, source: Source) -> bool:
    described = (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
    return described and (source.load_format == "dummy" or bool(_weights(folder, ".safetensors")))


def _converted(folder: Path, source: Source, report: Report) -> Path:
    """`folder`, or a folder of links to it in which what was missing has been made."""
    if not (folder / "config.json").is_file():
        raise HubError(f"{folder} has no config.json: it is no model")
    if _is_complete(folder, source):
        return folder
    if source.load_format != "dummy" and not _weights(folder, ".safetensors"):
        if source.load_format == "safetensors":
            raise HubError(f"{folder} has no *.safetensors; other weights need --load-format auto")
        if not _weights(folder, ".bin"):
            raise HubError(f"{folder} has no weights (*.safetensors or *.bin)")
    key = sha256(f"{folder.resolve()} {folder.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = _cache_folder(source) / "tgi-converted" / f"{folder.name}-{key}"
    if _is_complete(target, source):
        return target
    report("converting the model", 0, 0)
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


def _convert(folder: Path, target: Path) -> None:
    """Make what `target` lacks from `folder`; in a process of its own, for it needs torch."""
    command = [sys.executable, "-m", "tgi.weights.convert", str(folder), str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise HubError(f"{folder} lacks files that cannot be made of what it has: {last}")


def _cache_folder(source: Source) -> Path:
    if source.cache is not None:
        return source.cache.expanduser()
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _check_id(source: Source) -> None:
    if source.model_id.startswith(("/", ".", "~")) or source.model_id.count("/") > 1:
        raise HubError(f"there is no folder {source.model_id}")


def _download(source: Source, report: Report) -> Path:
    _check_id(source)
    with _progress(source, _cache_folder(source), report):
        if source.load_format == "dummy":
            return _snapshot(source, *DESCRIPTIONS)
        folder = _snapshot(source, *DESCRIPTIONS, f"*{source.extension}")
        if not _weights(folder, source.extension) and source.load_format == "auto":
            other = ".bin" if source.extension == ".safetensors" else ".safetensors"
            folder = _snapshot(source, *DESCRIPTIONS, f"*{other}")
    return folder


def _snapshot(source: Source, *patterns: str) -> Path:
    """The files of the repository that match, downloaded unless they are there."""
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
def _progress(source: Source, cache: Path, report: Report) -> Iterator[None]:
    """Report how many bytes have arrived while the body downloads, counted on disk."""
    repository = cache / f"models--{source.model_id.replace('/', '--')}" / "blobs"
    report(f"downloading {source.model_id}", 0, 0)
    finished = threading.Event()

    def count() -> None:
        total = _download_size(source)
        while not finished.wait(_POLL_SECONDS):
            done = sum(path.stat().st_size for path in repository.glob("*") if path.exists())
            report(f"downloading {source.model_id}", min(done, total) if total else done, total)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()


def _download_size(source: Source) -> int:
    """Bytes of the weights on the Hub; 0 where that cannot be known."""
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
    """Turn what huggingface_hub raises into one line with the cure."""
    from huggingface_hub import errors

    name = source.model_id if source.revision is None else f"{source.model_id} ({source.revision})"
    try:
        yield
    except errors.HFValidationError as error:
        raise HubError(f"{name!r} is neither a folder nor an id on the Hub") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{name} is gated: accept its conditions on the Hub, and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{source.model_id} has no revision {source.revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no folder {name}, and no such model on the Hub that HF_TOKEN may read"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(
            f"{name} is not in the cache, and the Hub cannot be reached (HF_HUB_OFFLINE, HF_ENDPOINT)"
        ) from error
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


def _child(argument: str) -> None:
    fields = json.loads(argument)
    source = Source(**{**fields, "cache": Path(fields["cache"]) if fields["cache"] else None})

    def say(message: dict[str, object]) -> None:
        print(json.dumps(message), flush=True)

    try:
        folder = find_model(
            source, lambda stage, done, total: say({"stage": stage, "done": done, "total": total})
        )
        say({"folder": str(folder)})
    except HubError as error:
        say({"error": str(error)})


if __name__ == "__main__":
    _child(sys.argv[1])
