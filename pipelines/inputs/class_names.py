"""The names of classes that tar files and tables give to their images."""

from __future__ import annotations

#: Fields of a sample in a tar file that hold its class; the first that is there.
LABEL_FIELDS = ("cls", "class", "label")
MAX_LABEL = 200  # bytes


def class_name(data: bytes) -> str | None:
    """The name of a class, or its number; None for bytes that are not one short line of UTF-8."""
    try:
        name = data.decode().strip()
    except UnicodeDecodeError:
        return None
    return name if 0 < len(data) <= MAX_LABEL and name and name.isprintable() else None
