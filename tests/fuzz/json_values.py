"""JSON with odd values, names and spellings."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[Any, ...]

DEEP, LONG_NUMBER = "@deep@", "@long number@"  # replaced in the text: json.dumps cannot write them
#: A file that nothing may change or read, below the sandbox's folder, by relative paths.
OUTSIDE = ("../canary/thesis.txt", "../../canary/thesis.txt", "../../../canary/thesis.txt",
           "../../../../canary/thesis.txt", "canary/thesis.txt", "../../../canary")  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e-300, 2**31 - 1, 2**31, 2**40, 2**53 + 1,
    2**63, 2**64, -(2**63), 10**30, 1e308, float("inf"), float("-inf"), float("nan"), LONG_NUMBER,
    "", "0", "a", "nan", ".", "..", "/", "\0", "a\0b", "\x1b[31mred", "\u202egnp", "\ud800", "é",
    "line\nbreak", "x" * 300, "y" * 5000, "uint16", "float32", "2x2", "-1x2", "999999999x9", "2x",
    [], [0], [[]], [None], ["a"], [1, 2], [-1, -1], [2**40, 2**40], [0] * 1000, {}, {"a": 1}, DEEP,
)  # fmt: skip
BROKEN_TEXT = (b"", b"\xef\xbb\xbf", b"\xff\xfe", b"null", b"[]", b"3", b'"a"', b"{", b"NaN", b"\0",
               b"[" * 100_000, b'{"a":' * 100_000)  # fmt: skip


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value in a JSON value, its own first."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in items:
        yield from places(item, (*path, name))


def edited(value: Any, path: Path, edit: Callable[[Any, Any], None], otherwise: Any) -> Any:
    """A copy of `value` after `edit(container, name)` of a path; `otherwise` for the empty path."""
    if not path:
        return otherwise
    copied = copy.deepcopy(value)
    container = copied
    for name in path[:-1]:
        container = container[name]
    edit(container, path[-1])
    return copied


@st.composite
def odd_values(draw: st.DrawFn, folder: str) -> Any:
    """Any odd JSON value; `folder` is the sandbox's, for absolute paths."""
    paths = [*OUTSIDE, f"{folder}/canary/thesis.txt", f"{folder}/canary"]
    small = st.integers() | st.floats() | st.text(max_size=8)
    return draw(st.sampled_from(ODD) | st.sampled_from(paths) | small)


@st.composite
def mutated_json(draw: st.DrawFn, value: Any, folder: str, times: int = 2) -> Any:
    """A JSON value with one to `times` values replaced, removed, added, renamed or moved."""
    for _ in range(draw(st.integers(1, times))):
        path = draw(st.sampled_from(list(places(value))))
        odd = draw(odd_values(folder))
        change = draw(st.sampled_from(["replace"] * 5 + ["remove", "add", "rename", "scale"]))
        value = edited(value, path, _edit(change, odd), odd)
    return value


def _edit(change: str, odd: Any) -> Callable[[Any, Any], None]:
    def edit(container: Any, name: Any) -> None:
        if change == "remove":
            del container[name]
        elif change == "add" and isinstance(container, list):
            container.insert(name, odd)
        elif change in ("add", "rename") and isinstance(container, dict):
            held = container[name] if change == "add" else container.pop(name)
            container[odd if isinstance(odd, str) else "other"] = held
        elif change == "scale" and isinstance(container[name], int | float):
            container[name] *= -1000
        else:
            container[name] = odd

    return edit


def json_text(value: Any) -> bytes:
    """A JSON value as text, with what json.dumps cannot write."""
    text = json.dumps(value, indent=2)
    depth = 100_000
    for name, written in ((DEEP, "[" * depth + "]" * depth), (LONG_NUMBER, "9" * 5000)):
        text = text.replace(json.dumps(name), written)
    return text.encode()


@st.composite
def json_files(draw: st.DrawFn, value: Any, folder: str) -> bytes:
    """The text of a JSON file like `value`, mostly JSON."""
    text = json_text(draw(mutated_json(value, folder)))
    change = draw(st.sampled_from(["none"] * 8 + ["cut", "broken", "mark", "twice", "byte"]))
    if change == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if change == "broken":
        return draw(st.sampled_from(BROKEN_TEXT))
    if change == "mark":
        return b"\xef\xbb\xbf" + text
    if change == "twice":
        return text + text
    if change == "byte":
        at = draw(st.integers(0, len(text)))
        return text[:at] + draw(st.sampled_from([b"\xff", b"\0", b"{", b'"', b"\n"])) + text[at:]
    return text
