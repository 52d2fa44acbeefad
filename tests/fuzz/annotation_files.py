"""JSONL and CSV annotation files with odd lines."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.json_values import BROKEN_TEXT, json_text, mutated_json
from tests.fuzz.sandbox import GOOD

#: A valid line of each kind of annotation, without the file's name.
ANNOTATIONS: dict[str, dict[str, Any]] = {
    "boxes": {"category": "tree", "bbox": [1, 2, 10, 12.5]},
    "keypoints": {"keypoints": [[1, 2, 2], [3.5, 4, 1], [0, 0, 0]]},
    "class": {"class": "lake"},
}
CSV_HEADS = (
    "file,class", "file;class", "class,file", "file", "file,class,class", '"file","class"', "",
    "\ufefffile,class", "file,class\n\n", "file,\x1b[31m", " file , class ",
)  # fmt: skip
CSV_LINES = (
    "good-1.png,lake", "good-2.jpg,wood", "good-1.png", "good-1.png,", ",lake", '"', '"a""',
    "good-1.png,\x1b[31m", "missing.png,lake", "a,b,c,d", "\0", "x" * 200_000,
    "../../canary/thesis.txt,a", "good-1.png,other", 'good-1.png,"two\nlines"',
)  # fmt: skip


@st.composite
def annotation_files(draw: st.DrawFn, kind: str, folder: str) -> bytes:
    """Lines of JSON that start and end with a valid one, odd ones between them."""
    valid = {"file": GOOD[0], **ANNOTATIONS[kind]}
    lines = [json.dumps(valid).encode()]
    for _ in range(draw(st.integers(1, 4))):
        line = json_text(draw(mutated_json({**valid, "file": draw(st.sampled_from(GOOD))}, folder)))
        line = line.replace(b"\n", b"")
        change = draw(st.sampled_from(["none"] * 6 + ["cut", "broken", "byte"]))
        if change == "cut":
            line = line[: draw(st.integers(0, len(line)))]
        elif change == "broken":
            line = draw(st.sampled_from(BROKEN_TEXT))
        elif change == "byte":
            at = draw(st.integers(0, len(line)))
            line = (
                line[:at] + draw(st.sampled_from([b"\xff", b"\0", b"\r", b"\xc2\x85"])) + line[at:]
            )
        lines.append(line)
    lines.append(json.dumps({**valid, "file": GOOD[1]}).encode())
    ending = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"\n\n"]))
    mark = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"]))
    return mark + ending.join(lines) + draw(st.sampled_from([b"\n", b"", b"\0"]))


@st.composite
def class_tables(draw: st.DrawFn) -> bytes:
    """A CSV file of classes with odd lines, in an odd encoding at times."""
    lines = [draw(st.sampled_from(["file,class"] * 4 + list(CSV_HEADS)))]
    lines += draw(st.lists(st.sampled_from(CSV_LINES), max_size=6))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    encoding = draw(st.sampled_from(["utf-8"] * 4 + ["utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, errors="replace")
