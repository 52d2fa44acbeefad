"""Paths of files that are only read: `https://host/name` and `hf://datasets/OWNER/NAME/path`."""

from __future__ import annotations

import functools
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import quote, urlsplit

from ops.config import ConfigError
from ops.object_paths import SCHEMES, URI, ObjectPath, parse_path, scheme_of
from ops.text import printable

#: Schemes of what is read through fsspec.
WEB_SCHEMES = ("https", "http", "hf")
#: Schemes of what is read and lies on no disk of this machine.
REMOTE_SCHEMES = frozenset((*SCHEMES, *WEB_SCHEMES))
CONTROL = re.compile(r"[\x00-\x20\x7f]")
DATASETS = "datasets"


@functools.total_ordering
class WebPath:
    """The place of a file at a web server, or of a file or folder of a data set at a hub.

    Immutable and ordered by URI. Raises ConfigError for a URI that names none, or has a password.
    """

    __slots__ = ("uri",)

    def __init__(self, uri: str) -> None:
        scheme, _, rest = uri.partition("://")
        host, _, path = rest.partition("/")
        shown = printable(uri, 200)
        if scheme == "hf" and (host != DATASETS or not path.strip("/")):
            raise ConfigError(f"{shown}: give hf://datasets/OWNER/NAME or a path in it.")
        if not host or CONTROL.search(host) or "\0" in uri:
            raise ConfigError(f"{shown}: no URI of a file. Give {scheme}://HOST/NAME.")
        if "@" in host:
            raise ConfigError(
                f"{scheme}://...@{printable(host.rpartition('@')[2], 100)}: a URI with a password "
                "would be kept in the store. Give it without."
            )
        self.uri = f"{scheme}://{rest}" if scheme != "hf" else f"hf://{rest.strip('/')}"

    @property
    def scheme(self) -> str:
        return self.uri.partition("://")[0]

    @property
    def host(self) -> str:
        """The server's name with its port; of a hub the word `datasets`."""
        return self.uri.partition("://")[2].partition("/")[0]

    @property
    def name(self) -> str:
        """The last part of the path, without a query."""
        path = urlsplit(self.uri).path if self.scheme != "hf" else self.uri
        return path.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> WebPath:
        """The folder above; that of a server's or a data set's root is itself."""
        start = f"{self.scheme}://{self.host}"
        if self.scheme == "hf":
            above = posixpath.dirname(self.uri)
            return self if above == start else WebPath(above)
        return WebPath(start + posixpath.dirname(urlsplit(self.uri).path).rstrip("/"))

    def __truediv__(self, name: str) -> WebPath:
        quoted = name if self.scheme == "hf" else quote(name)
        return WebPath(f"{self.uri.rstrip('/')}/{quoted}")

    def absolute(self) -> WebPath:
        return self

    def is_absolute(self) -> bool:
        return True

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"WebPath({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WebPath) and self.uri == other.uri

    def __lt__(self, other: WebPath) -> bool:
        return self.uri < other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __reduce__(self) -> tuple[type[WebPath], tuple[str]]:
        return WebPath, (self.uri,)


#: What images are read from.
SourcePath = Path | ObjectPath | WebPath


def parse_source(text: str) -> SourcePath:
    """The local path, object, prefix or file at a server that a text names, to read it.

    Raises ConfigError for a scheme that is not read, and for a URI that names nothing.
    """
    scheme = scheme_of(text)
    if scheme in WEB_SCHEMES:
        match = cast(Any, URI.match(text))
        return WebPath(f"{scheme}://{match[2]}")
    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(
            f"{printable(text, 200)}: {scheme}:// is not read. Give a local path, "
            "s3://BUCKET/NAME, gs://BUCKET/NAME, https://HOST/NAME or hf://datasets/OWNER/NAME."
        )
    return parse_path(text)


def is_remote(text: str) -> bool:
    """Whether a text is the URI of a remote file; each other text is a local path."""
    return scheme_of(text) in REMOTE_SCHEMES
