"""Explains in one line why the Hub gives no model, and what helps."""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


class HubError(Exception):
    """The model cannot be fetched; the message is one line that says what to do."""


@contextlib.contextmanager
def explained(model_id: str, revision: str | None, cache: Path) -> Iterator[None]:
    """Turn exceptions of huggingface_hub into a HubError that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise HubError(f"{model_id!r} is neither a folder nor an id on the Hub") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        causes = list(_causes(error))
        disk = next((cause for cause in causes if _is_of_disk(cause)), None)
        if disk is not None:
            raise disk_error(disk, cache) from error
        raise HubError(_hub_reason(model_id, revision, causes)) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_disk(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (*_UNWRITABLE, errno.ENOSPC)


def _hub_reason(model_id: str, revision: str | None, causes: Sequence[BaseException]) -> str:
    """Return why the Hub gave no model, and what helps; the causes are the exception and those behind it."""
    from huggingface_hub import constants, errors

    name = model_id if revision is None else f"{model_id} ({revision})"
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    refused = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    status = 0 if refused is None else refused.response.status_code
    hub = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    part = "only partly in the cache" if "IncompleteSnapshotError" in kinds else "not in the cache"
    absent = f"{name} is {part}, and"
    if "OfflineModeIsEnabled" in kinds or constants.HF_HUB_OFFLINE:
        return f"{absent} HF_HUB_OFFLINE=1 forbids to ask the Hub"
    if "GatedRepoError" in kinds:
        return f"{name} is gated: accept its conditions on the Hub, and set HF_TOKEN"
    if "RevisionNotFoundError" in kinds:
        return f"{model_id} has no revision {revision}"
    if "DisabledRepoError" in kinds:
        return f"the Hub has disabled {name}"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no folder {name}, and no such model on the Hub that HF_TOKEN may read"
    if status == 401:
        return f"the Hub wants a token that may read {name}: set HF_TOKEN to one that is valid"
    if status == 403:
        return f"HF_TOKEN may not read {name} (403): give the token the right to, or set another one"
    if status == 404:
        return f"{name} lacks a file on {hub} (404): is HF_ENDPOINT the Hub?"
    if status == 407:
        return f"{absent} the proxy of HTTPS_PROXY wants a user and a password (407)"
    if status == 429:
        return (
            f"{absent} the Hub has had too many requests from here (429): wait some minutes, or set "
            "HF_TOKEN, which has a limit of its own"
        )
    if status >= 500:
        return f"{absent} {hub} has a fault of its own ({status}): try again later"
    if refused is not None:
        return f"the Hub refuses {name}: {' '.join(str(refused).split())}"
    proxy = None if proxy_bypass(hub) else getproxies().get(urlsplit(constants.ENDPOINT).scheme)
    asked = f"the proxy {urlsplit(proxy).netloc.rpartition('@')[2]}" if proxy else hub
    if "ProxyError" in kinds:
        return f"{absent} {asked} refuses: {_innermost(causes)}"
    if "gaierror" in kinds:
        return (
            f"{absent} the name of {asked} cannot be resolved: without a network, give a folder, or fill the "
            "cache with `tgi download-weights` where there is one"
        )
    if kinds & {"SSLError", "SSLCertVerificationError"}:
        return (
            f"{absent} the certificate of {asked} is not trusted: behind a proxy that opens TLS, name its "
            "certificates with SSL_CERT_FILE"
        )
    if kinds & {"TimeoutException", "TimeoutError", "Timeout"}:
        return f"{absent} {asked} does not answer in time: is there a network, or a proxy for HTTPS_PROXY?"
    return f"{absent} {asked} cannot be reached: {_innermost(causes)}"


def _innermost(causes: Sequence[BaseException]) -> str:
    return " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__


def disk_error(error: OSError, folder: Path) -> HubError:
    """Return what keeps a folder from taking the model, and what helps."""
    if error.errno == errno.ENOSPC:
        return HubError(f"no space left in {folder}: set HUGGINGFACE_HUB_CACHE to a larger disk")
    if error.errno in _UNWRITABLE:
        return HubError(f"{folder} cannot be written: set HUGGINGFACE_HUB_CACHE to a folder that can")
    return HubError(f"the model cannot be fetched: {' '.join(str(error).split())}")
