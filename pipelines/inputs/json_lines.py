"""Objects in the lines of a JSONL file, and in other short JSON texts that a user names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ops.text import printable
from ops.web_paths import SourcePath
from pipelines.inputs.text_lines import text_lines

NO_OBJECT = "no object"  # the reason for a JSON text of something else


def json_lines(path: SourcePath) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, object or the reason why it is none) of each line; raises as text_lines."""
    for number, text, problem in text_lines(path):
        if problem is not None or text.strip():
            yield number, problem or json_object(text)


def json_object(text: str) -> dict[str, Any] | str:
    """The object in a line, or why there is none."""
    try:
        value = json.loads(text, object_pairs_hook=_unrepeated)
        if "\\u" in text:  # escapes may spell half of a surrogate pair, which is no character
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        return "no JSON that is read: nested too deeply"
    except json.JSONDecodeError as error:
        return f"no JSON ({error.msg})"
    except UnicodeEncodeError:
        return "half of a surrogate pair in it, which is no character"
    except _RepeatedError as error:
        return str(error)
    except ValueError:  # Python's limit for the digits of an integer
        return "a number of too many digits"
    return value if isinstance(value, dict) else NO_OBJECT


class _RepeatedError(ValueError):
    """An object that has a field twice."""


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _RepeatedError(f"{printable(repeated, 60)!r} twice in one object")
    return found
