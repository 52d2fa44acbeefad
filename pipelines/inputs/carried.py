"""What a source says of an image and the index keeps: a caption, and other columns as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: Names, in any case, of columns, JSON fields and tar members that hold a caption; the first.
CAPTION_NAMES = ("caption", "txt", "text")
MAX_TEXT = 1 << 16  # characters of a value; a longer text is left out


class Carried(NamedTuple):
    """What is kept of one image."""

    caption: str | None
    values: str | None  # a JSON object of numbers, texts and booleans, sorted by name


NOTHING = Carried(None, None)


@dataclass(frozen=True)
class Carry:
    """Which columns are carried; `names` is None for all of them."""

    names: frozenset[str] | None = frozenset()

    def takes(self, name: str) -> bool:
        return self.names is None or name in self.names

    def __bool__(self) -> bool:
        return self.names != frozenset()


def parse_carry(text: str) -> Carry:
    """The columns that a value of --carry names: `all`, `none` or names with commas between."""
    if text == "all":
        return Carry(None)
    names = frozenset(name.strip() for name in text.split(",")) - {"", "none"}
    return Carry(names)


def carried(values: Mapping[str, Any], carry: Carry) -> Carried:
    """The values that `carry` takes: the caption, and those that are numbers, texts or booleans."""
    taken = {
        name: value for name, value in values.items() if carry.takes(name) and _is_unicode(name)
    }
    caption = None
    by_name = {name.lower(): name for name in reversed(taken)}
    for name in CAPTION_NAMES:
        if name in by_name and isinstance(taken[by_name[name]], str):
            caption = caption_text(taken.pop(by_name[name]))
            break
    scalars = {name: value for name, value in taken.items() if _is_carried(value)}
    return Carried(caption, _json(scalars) if scalars else None)


def caption_text(text: str) -> str | None:
    """A caption without spaces around it; None for one that is empty or too long."""
    text = text.strip()
    return text if 0 < len(text) <= MAX_TEXT and _is_unicode(text) else None


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _is_carried(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and _is_unicode(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_unicode(text: str) -> bool:
    """Whether a text can be written: half of a surrogate pair cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
