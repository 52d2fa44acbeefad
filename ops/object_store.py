"""Reading and writing objects through obstore: retried, with errors that say what to do.

Credentials come from where each ecosystem keeps them: the environment (AWS_ACCESS_KEY_ID and so on,
GOOGLE_APPLICATION_CREDENTIALS), or the machine's role. Everything else about a store (endpoint,
region, ...) may be given as storage options, which processes started later inherit.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ops.config import ConfigError, UserError
from ops.object_paths import ObjectPath
from ops.range_reader import RangeReader
from ops.storage_options import options_in_force
from ops.text import printable
from ops.transient_errors import retried

T = TypeVar("T")

MULTIPART_BYTES = 64 << 20  # objects larger than this are written in several requests
FIRST_READ_BYTES = 4 << 20  # read at once when an object is opened: most are smaller
BLOCK_BYTES = 1 << 20  # of the buffer of one that is read by ranges
#: obstore's own tries of one request, with waits that double; ops.transient_errors tries again.
RETRIES = {"max_retries": 5, "init_backoff": 0.1, "max_backoff": 5.0}
#: Of a client: a connection, or a read, that takes longer has failed.
TIMEOUTS = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "600s"}
CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", *TIMEOUTS)
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "memory": "the credentials",
}


class ObjectStoreError(UserError):
    """An object store that cannot be used as asked."""


class ObjectInfo(NamedTuple):
    """What a store says of an object without reading it."""

    path: ObjectPath
    size: int  # bytes
    etag: str  # another content has another etag; "" where the store has none
    modified: datetime  # by the store's clock


class ObjectPart(NamedTuple):
    """Some bytes of an object."""

    data: bytes
    info: ObjectInfo | None  # None where there are no bytes


# --- clients


_used_in: list[int] = []  # the process whose threads obstore runs in
_lock = threading.Lock()


def _client(path: ObjectPath) -> Any:
    """The obstore client of a bucket.

    Raises ConfigError for options that the store does not have, ObjectStoreError in a process that
    was forked after its parent had used a store: obstore's threads are missing there, and it would
    wait for ever.
    """
    if _used_in and _used_in[0] != os.getpid():
        raise ObjectStoreError(
            f"{path}: this process was forked from one that had used an object store, which does "
            "not work. Start it afresh: DataLoader(..., multiprocessing_context='forkserver')."
        )
    with _lock:
        return _new_client(path.scheme, path.bucket, json.dumps(options_in_force()))


@functools.lru_cache(maxsize=64)
def _new_client(scheme: str, bucket: str, options_text: str) -> Any:
    import obstore.exceptions
    from obstore.store import GCSStore, MemoryStore, S3Store

    if not _used_in:
        _used_in.append(os.getpid())
    options: dict[str, str] = json.loads(options_text)
    if scheme == "memory":
        return MemoryStore()
    client: dict[str, Any] = {**TIMEOUTS}
    endpoint = options.get("endpoint") or options.get("endpoint_url") or _endpoint_of_environment()
    if endpoint.startswith("http://"):
        client["allow_http"] = True  # it was asked for by name
    client |= {key: value for key, value in options.items() if key in CLIENT_OPTIONS}
    config = {key: value for key, value in options.items() if key not in CLIENT_OPTIONS}
    backoff = {
        "init_backoff": timedelta(seconds=RETRIES["init_backoff"]),
        "max_backoff": timedelta(seconds=RETRIES["max_backoff"]),
    }
    retry = {"max_retries": int(RETRIES["max_retries"]), "backoff": backoff}
    store_type: Any = {"s3": S3Store, "gs": GCSStore}[scheme]
    try:
        return store_type(bucket, client_options=client, retry_config=retry, **config)
    except (obstore.exceptions.BaseError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{scheme}://{bucket}: these storage options or credentials cannot be used "
            f"({_first_line(error)}). Check --storage-option and the environment."
        ) from error


def _endpoint_of_environment() -> str:
    return os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""


# --- errors


def _first_line(error: BaseException) -> str:
    """The end of the first line of an error of obstore, which has what the server answered."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return printable(line.rpartition(" - ")[2].removesuffix(": "), 200)


@contextlib.contextmanager
def _explained(path: ObjectPath) -> Iterator[None]:
    """Raise errors of obstore as FileNotFoundError, FileExistsError, ConnectionError where another
    try may succeed, and else as ObjectStoreError."""
    import obstore.exceptions as errors

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error) or "bucket does not exist" in str(error):
            raise _no_bucket(path) from error
        raise FileNotFoundError(errno.ENOENT, "No such object", str(path)) from None
    except (errors.AlreadyExistsError, errors.PreconditionError) as error:
        raise FileExistsError(errno.EEXIST, "The object exists", str(path)) from error
    except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
        raise _denied(path, error) from error
    except errors.InvalidPathError as error:  # of an object that a listing meets
        raise ObjectStoreError(
            f"{path}: {_first_line(error)}. Rename that object, or name prefixes without it."
        ) from error
    except errors.NotSupportedError as error:
        raise ObjectStoreError(f"{path}: {_first_line(error)}. Use another store.") from error
    except errors.BaseError as error:
        raise _of_generic(path, error) from error


def _no_bucket(path: ObjectPath) -> ObjectStoreError:
    return ObjectStoreError(
        f"{path.scheme}://{path.bucket}: there is no such bucket. Make it, or check its name and "
        "--storage-option endpoint=... and region=...."
    )


def _denied(path: ObjectPath, error: BaseException) -> ObjectStoreError:
    return ObjectStoreError(
        f"{path}: access denied ({_first_line(error)}). Check {CREDENTIALS[path.scheme]} and what "
        "they may do there."
    )


def _of_generic(path: ObjectPath, error: Exception) -> Exception:
    text = str(error)
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return _no_bucket(path)
    if "169.254.169.254" in text or "token request" in text or "metadata.google" in text:
        return ObjectStoreError(
            f"{path}: no credentials were found ({_first_line(error)}). Set "
            f"{CREDENTIALS[path.scheme]}, or --storage-option skip_signature=true for a public one."
        )
    status = text.partition("status code: ")[2][:3]
    if status in ("301", "307") or "AuthorizationHeaderMalformed" in text:
        return ObjectStoreError(
            f"{path}: the bucket is in another region. Name it: --storage-option region=...."
        )
    if status in ("401", "403"):
        return _denied(path, error)
    if status.startswith("4") and status not in ("408", "409", "425", "429"):
        return ObjectStoreError(
            f"{path}: refused ({_first_line(error)}). Check the name and --storage-option."
        )
    return ConnectionError(f"{_first_line(error)}, at {_endpoint_name(path)}")


def _endpoint_name(path: ObjectPath) -> str:
    options = options_in_force()
    endpoint = options.get("endpoint") or options.get("endpoint_url") or _endpoint_of_environment()
    return printable(endpoint or f"the default endpoint of {path.scheme}://", 200)


def _tried(path: ObjectPath, doing: str, body: Callable[[Any], T]) -> T:
    """`body(client)`, tried again after errors of the network; raises TransientError in the end."""

    def once() -> T:
        client = _client(path)
        with _explained(path):
            return body(client)

    return retried(
        once,
        str(path),
        doing=doing,
        remedy="Check the network and --storage-option endpoint=..., then run the same command "
        "again",
    )


# --- operations


def read_object(path: ObjectPath) -> bytes:
    """The whole object; raises FileNotFoundError."""
    import obstore

    return _tried(path, "read", lambda client: bytes(obstore.get(client, path.key).bytes()))


def read_object_range(path: ObjectPath, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset` on: fewer where the object ends before."""
    return read_object_part(path, offset, size).data


def read_object_part(path: ObjectPath, offset: int, size: int) -> ObjectPart:
    """read_object_range with what the store says of the object that the bytes are of."""
    import obstore

    if size <= 0:
        return ObjectPart(b"", None)

    def read(client: Any) -> ObjectPart:
        try:
            got = obstore.get(client, path.key, options={"range": (offset, offset + size)})
        except obstore.exceptions.BaseError as error:
            if _is_past_end(error):
                return ObjectPart(b"", None)
            raise
        return ObjectPart(bytes(got.bytes()), _info(path, got.meta))

    return _tried(path, "read", read)


def _is_past_end(error: Exception) -> bool:
    """Whether a range was refused since it begins where the object ends, or later."""
    return "status code: 416" in str(error) or "Invalid range" in str(error)


def write_object(path: ObjectPath, data: bytes | Path) -> None:
    """Write the bytes, or the content of a local file; readers see the old object or the new."""
    import obstore

    _tried(
        path,
        "written",
        lambda client: obstore.put(client, path.key, data, chunk_size=MULTIPART_BYTES),
    )


def create_object(path: ObjectPath, data: bytes) -> bool:
    """Write the object unless one exists; True if it then has exactly this content.

    So it is True too where an earlier request of this call succeeded and its answer was lost, or
    where another writer has written the same.
    """
    import obstore

    def create(client: Any) -> bool:
        try:
            obstore.put(client, path.key, data, mode="create", use_multipart=False)
            return True
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            pass
        try:
            return bytes(obstore.get(client, path.key).bytes()) == data
        except FileNotFoundError:  # refused because another write of it was under way, and failed
            raise ConnectionError(
                "a conditional write was refused, but there is no object"
            ) from None

    return _tried(path, "written", create)


def copy_object(source: ObjectPath, target: ObjectPath) -> None:
    """Copy within a bucket, at the store; raises FileNotFoundError where there is no source."""
    import obstore

    assert (source.scheme, source.bucket) == (target.scheme, target.bucket)
    _tried(source, "copied", lambda client: obstore.copy(client, source.key, target.key))


def remove_object(path: ObjectPath) -> None:
    """Remove an object; no error where there is none."""
    import obstore

    with contextlib.suppress(FileNotFoundError):
        _tried(path, "removed", lambda client: obstore.delete(client, path.key))


def find_object(path: ObjectPath) -> ObjectInfo | None:
    """Size, etag and time of an object; None where there is none."""
    import obstore

    if not path.key:
        return None
    try:
        return _info(path, _tried(path, "read", lambda client: obstore.head(client, path.key)))
    except FileNotFoundError:
        return None


def list_objects(prefix: ObjectPath) -> list[ObjectInfo]:
    """Every object below a prefix, by key; of a bucket that does not exist, ObjectStoreError."""
    return sorted(walk_objects(prefix))


def walk_objects(prefix: ObjectPath, at_once: int = 1000) -> Iterator[ObjectInfo]:
    """list_objects without all of them in memory, `at_once` a request; in the store's order."""
    import obstore

    bucket = ObjectPath(prefix.scheme, prefix.bucket)
    chunks: Iterator[Any] | None = None
    last: str | None = None

    def next_chunk(client: Any) -> Any:
        nonlocal chunks
        if chunks is None:  # at the beginning, and after an error
            chunks = iter(obstore.list(client, prefix.key or None, offset=last, chunk_size=at_once))
        try:
            return next(chunks, None)
        except Exception:
            chunks = None
            raise

    while chunk := _tried(prefix, "listed", next_chunk):
        last = chunk[-1]["path"]
        yield from (_info(bucket / meta["path"], meta) for meta in chunk)


def has_objects(prefix: ObjectPath) -> bool:
    """Whether any object lies below a prefix; raises as list_objects."""
    return next(walk_objects(prefix, at_once=1), None) is not None


def _info(path: ObjectPath, meta: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(path, meta["size"], meta.get("e_tag") or "", meta["last_modified"])


def open_object(path: ObjectPath) -> BinaryIO:
    """An object as a seekable file: a small one is read at once, others by ranges when needed."""
    import obstore

    def first(client: Any) -> tuple[int, bytes]:
        try:
            got = obstore.get(client, path.key, options={"range": (0, FIRST_READ_BYTES)})
        except obstore.exceptions.BaseError as error:
            if _is_past_end(error):  # it is empty
                return 0, b""
            raise
        return got.meta["size"], bytes(got.bytes())

    size, head = _tried(path, "read", first)
    if len(head) >= size:
        return io.BytesIO(head)
    read_range = functools.partial(read_object_range, path)
    return io.BufferedReader(RangeReader(read_range, size, head), BLOCK_BYTES)


def download(path: ObjectPath, target: BinaryIO) -> None:
    """Write an object's content into an open local file; raises FileNotFoundError."""
    import obstore

    def read(client: Any) -> None:
        target.seek(0)
        target.truncate()
        for piece in obstore.get(client, path.key).stream(min_chunk_size=BLOCK_BYTES * 8):
            target.write(piece)

    _tried(path, "read", read)
