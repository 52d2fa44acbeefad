"""Reading files at web servers and data set hubs through fsspec: retried, by ranges, never written.

The libraries below (aiohttp, huggingface_hub) have errors of their own; what a file is to blame for
becomes an OSError here, and what the network is to blame for is tried again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from ops.config import UserError
from ops.text import printable
from ops.transient_errors import retried
from ops.web_paths import WebPath

T = TypeVar("T")

#: Modules whose errors are those of a connection.
NETWORK_MODULES = frozenset(("aiohttp", "asyncio", "httpx", "httpx2", "requests", "urllib3"))
TIMEOUTS = {"total": 600.0, "sock_connect": 10.0, "sock_read": 60.0}  # seconds
TRANSIENT_STATUSES = frozenset((408, 409, 425, 429))
CHECKSUMS = ("ETag", "Content-MD5", "Digest", "Last-Modified")  # that a server may give


class WebError(UserError):
    """A server or hub that cannot be used as asked."""


class WebInfo(NamedTuple):
    """What a server says of a file without reading it."""

    path: WebPath
    size: int  # bytes
    etag: str  # another content has another one; "" where the server has none
    is_folder: bool = False


def web_info(path: WebPath) -> WebInfo:
    """Size and etag of a file, or that it is a folder.

    Raises FileNotFoundError, OSError for a file that is refused, TransientError for a server that
    does not answer, and WebError where a package is missing.
    """
    options = {"refresh": True} if path.scheme == "hf" else {}
    return _info(path, _tried(path, "read", lambda files: files.info(str(path), **options)))


def list_web(folder: WebPath) -> list[WebInfo]:
    """Every file below a folder of a hub; raises what web_info does."""
    found = _tried(
        folder, "listed", lambda files: files.find(str(folder), detail=True, refresh=True)
    )
    return [_info(WebPath(f"hf://{name}"), found[name]) for name in sorted(found)]


def read_web_range(path: WebPath, offset: int, size: int, total: int) -> bytes:
    """At most `size` bytes from `offset` on, of a file of `total` bytes; raises what web_info does.

    OSError also where the server does not give parts of files.
    """
    size = min(size, total - offset)
    if size <= 0:
        return b""

    def read(files: Any) -> bytes:
        # Without a cache each read is one request.
        with files.open(str(path), "rb", size=total, cache_type="none") as file:
            file.seek(offset)
            return bytes(file.read(size))

    return _tried(path, "read", read)


def _info(path: WebPath, about: dict[str, Any]) -> WebInfo:
    if about.get("type") == "directory":
        return WebInfo(path, 0, "", is_folder=True)
    if about.get("size") is None:
        raise OSError(errno.EINVAL, "its server does not tell its size: download it", str(path))
    etag = (about.get("lfs") or {}).get("sha256") or about.get("blob_id")
    if path.scheme != "hf":
        etag = next((about[name] for name in CHECKSUMS if about.get(name)), "")
    return WebInfo(path, int(about["size"]), str(etag or "").strip('"'))


def _filesystem(path: WebPath) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if path.scheme != "hf":
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(**TIMEOUTS)}
    try:
        return fsspec.filesystem(path.scheme, **options)
    except ImportError:
        raise WebError(
            f"{printable(path, 200)}: hf:// needs the package huggingface_hub. Install it: "
            "pip install 'smalti[hf]'."
        ) from None


def _tried(path: WebPath, doing: str, body: Callable[[Any], T]) -> T:
    """`body(filesystem)`, tried again after errors of the network."""

    def once() -> T:
        files = _filesystem(path)
        with _explained(path):
            return body(files)

    remedy = "Check the network and the name of the host, then run the same command again"
    return retried(once, printable(path, 200), doing=doing, remedy=remedy)


# --- errors


@contextlib.contextmanager
def _explained(path: WebPath) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "range requests" not in str(error):
            raise
        raise OSError(
            errno.EINVAL, "its server gives no parts of files: download it", str(path)
        ) from error
    except Exception as error:
        plain = _plain(path, error)
        if plain is None:
            raise
        raise plain from error


def _plain(path: WebPath, error: Exception) -> OSError | None:
    """What an error of the libraries means; None for one that is not theirs."""
    status = _status_of(error)
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and _is_of_content(error)):
        return FileNotFoundError(errno.ENOENT, "No such file", str(path))
    if status in (401, 403):
        token = " Set HF_TOKEN to a token that may read it" if path.scheme == "hf" else ""
        return PermissionError(errno.EACCES, f"access denied ({status}).{token}", str(path))
    if status is not None and 400 <= status < 500 and status not in TRANSIENT_STATUSES:
        return OSError(errno.EINVAL, f"refused by its server ({status})", str(path))
    if status is not None:
        return ConnectionError(f"status {status}, at {path.host}")
    cause = error.__cause__ or error
    if isinstance(error, OSError) or _is_of_network(cause):
        return ConnectionError(f"{_first_line(cause)}, at {path.host}")
    return None


def _status_of(error: BaseException | None) -> int | None:
    """The status that a server answered, of an error or what it was raised from."""
    while error is not None:
        response = getattr(error, "response", None)
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _is_of_content(error: BaseException) -> bool:
    """Whether a file was not found, and not only no server: fsspec has one error for both."""
    cause = error.__cause__
    return cause is None or not (isinstance(cause, OSError) or _is_of_network(cause))


def _is_of_network(error: BaseException) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, TimeoutError) or bool(modules & NETWORK_MODULES)


def _first_line(error: BaseException) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
