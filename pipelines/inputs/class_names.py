"""The names of classes that tar files and tables give to their images."""

from __future__ import annotations

from collections.abc import Mapping

from ops.files import parse_json

#: Fields of a sample in a tar file that hold its class; the first that is there.
LABEL_FIELDS = ("cls", "class", "label")
MAX_LABEL = 200  # bytes
#: The key of a Parquet schema's metadata under which data set hubs describe its columns.
HUB_KEY = b"huggingface"


def class_name(data: bytes) -> str | None:
    """The name of a class, or its number; None for bytes that are not one short line of UTF-8."""
    try:
        name = data.decode().strip()
    except UnicodeDecodeError:
        return None
    return name if 0 < len(data) <= MAX_LABEL and name and name.isprintable() else None


def feature_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str]:
    """The classes of a column that a hub's metadata describe as a ClassLabel; none for others.

    Class k of the column has the k-th name. Names that are none, and metadata that are not read,
    give no classes.
    """
    try:
        described = parse_json((metadata or {}).get(HUB_KEY, b"{}"))
        feature = described["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else []
        found = [class_name(name.encode()) for name in names if isinstance(names, list)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [name for name in found if name is not None] if None not in found else []
