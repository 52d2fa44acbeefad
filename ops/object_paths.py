"""Paths of objects: `s3://bucket/key` and the like, with the parts of pathlib that do no I/O."""

from __future__ import annotations

import functools
import re
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from ops.config import ConfigError
from ops.text import printable

#: Object stores by scheme; `memory` is this process's own memory, for tests.
SCHEMES = ("s3", "gs", "memory")
URI = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@functools.total_ordering
class ObjectPath:
    """The place of an object, or of all objects below a prefix, in a bucket.

    Immutable and ordered by URI. `key` has no slash at its ends and no empty part, "." or "..":
    object stores keep such names apart that a file system would take for the same one.
    """

    __slots__ = ("bucket", "key", "scheme")

    def __init__(self, scheme: str, bucket: str, key: str = "") -> None:
        parts = key.split("/") if key else []
        if not bucket or any(part in ("", ".", "..") for part in parts):
            raise ConfigError(
                f"{printable(f'{scheme}://{bucket}/{key}', 200)}: no name of an object. Give "
                f"{scheme}://BUCKET/NAME, without //, . and .. in the name."
            )
        self.scheme, self.bucket, self.key = scheme, bucket, key

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        """The prefix one level up; the bucket's own parent is the bucket."""
        return ObjectPath(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.scheme, self.bucket, f"{self.key}/{name}" if self.key else name)

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """This path below `other`; ValueError where it does not lie there."""
        mine, start = str(self), f"{str(other).rstrip('/')}/"
        if self != other and not mine.startswith(start):
            raise ValueError(f"{self} does not lie below {other}")
        return PurePosixPath(mine[len(start) :])

    def absolute(self) -> ObjectPath:
        return self

    def is_absolute(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __lt__(self, other: ObjectPath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[type[ObjectPath], tuple[str, str, str]]:
        return ObjectPath, (self.scheme, self.bucket, self.key)


#: What the functions of ops/paths.py take.
AnyPath = Path | ObjectPath
P = TypeVar("P", bound=AnyPath)


def join(path: P, *names: str) -> P:
    """The path below `path`, of the same kind."""
    joined: Any = path
    for name in names:
        joined = joined / name
    return cast(P, joined)


def parent(path: P) -> P:
    """The folder or prefix that a path lies in, of the same kind."""
    return cast(P, path.parent)


def below(path: AnyPath, folder: AnyPath) -> str:
    """The name of `path` below `folder`, with slashes; both are of the same kind."""
    return path.relative_to(cast(Any, folder)).as_posix()


def scheme_of(text: str) -> str | None:
    """The scheme of a URI, in lower case; None for a path. `./s3://x` is a path."""
    match = URI.match(text)
    return match[1].lower() if match else None


def parse_path(text: str) -> AnyPath:
    """A local path, or the object or prefix that a URI names; a slash at its end is dropped.

    Raises ConfigError for a scheme that is not in SCHEMES, and for a URI without a bucket.
    """
    match = URI.match(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{printable(text, 200)}: {scheme}:// is not read or written. Give a local path, or "
            f"one of {', '.join(f'{known}://BUCKET/NAME' for known in SCHEMES[:-1])}."
        )
    bucket, _, key = rest.partition("/")
    return ObjectPath(scheme, bucket, key.rstrip("/"))
