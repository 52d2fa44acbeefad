"""Text from outside, such as file names, keys and column names, made safe to print."""

from __future__ import annotations

import re
import unicodedata

# Control characters (ESC, DEL, newlines, C1), invisible format characters (RTL override, isolates,
# zero-width space), surrogates (bytes of a name that is not UTF-8), line and paragraph separators.
_ESCAPED_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Persian, Indic scripts and emoji are spelled with the zero-width non-joiner and joiner.
_KEPT = "\u200c\u200d"
_NOT_PLAIN = re.compile(f"[^ -~{_KEPT}]")


def printable(text: object, limit: int = 500) -> str:
    """`text` as one line of at most `limit` characters that a terminal shows and does not act on.

    Control and invisible characters and lone surrogates become their Python escapes, as in
    `\\x1b[31m`; other Unicode stays. The middle of longer text becomes an ellipsis. Applied to its
    own result it changes nothing.
    """
    text = str(text)
    if len(text) > 2 * limit:  # escaping makes text longer, never shorter
        text = text[:limit] + text[-limit:]
    escaped = _NOT_PLAIN.sub(_escape, text)
    if len(escaped) <= limit:
        return escaped
    tail = (limit - 1) // 3
    return f"{escaped[: limit - 1 - tail]}…{escaped[len(escaped) - tail :]}"


def is_utf8(name: str) -> bool:
    """Whether a file's name can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:  # Python decodes other bytes of a name to lone surrogates
        return False
    return True


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) in _ESCAPED_CATEGORIES:
        return ascii(character)[1:-1]
    return character
