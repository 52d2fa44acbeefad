"""Input folders with odd names and with files of every type."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

NAMES = (
    b"odd.png", b"odd.tar", b"odd.parquet", b"odd", b"odd.PNG", b"odd png", b"odd.png ",
    b".odd.png", b"odd.jpg.txt", b"o\xff.png", b"o\xff.tar", b"\x1b[31modd.png", b"odd\n.png",
    b"\xe2\x80\xaegnp.png", b"-odd.png", b"#1.png", b"odd.tar#5", b"o" * 251 + b".png",
    b"odd\\.png", b"%s.png", b"[red].png", b"odd'.png", b'odd".png', b"\xc3\xa9.png",
    b"odd.jsonl", b"zarr.json", b"\x7f.png", b"\xc2\x85.png",
)  # fmt: skip
CONTENTS = ("image", "image", "text", "empty", "folder", "fifo", "socket", "link to canary",
            "link to nothing", "link to itself", "link to the folder above", "store")  # fmt: skip
#: Contents that no run lists, under names of images either.
QUIET = ("folder", "link to the folder above", "store")


class OddFile(NamedTuple):
    """An entry of a folder."""

    name: bytes
    content: str


class OddFolder(NamedTuple):
    """What an input folder holds with good images."""

    files: tuple[OddFile, ...]
    image: bytes


def add_odd_files(odd: OddFolder, folder: Path, canary: Path) -> None:
    """Make the entries in `folder`."""
    for file in odd.files:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + file.name))
        if file.content in ("image", "text", "empty"):
            path.write_bytes({"image": odd.image, "text": b"a caption", "empty": b""}[file.content])
        elif file.content in ("folder", "store"):
            path.mkdir()
            (path / ("zarr.json" if file.content == "store" else "inside.png")).write_bytes(
                odd.image
            )
        elif file.content == "fifo":
            os.mkfifo(path)
        elif file.content == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o644)
        else:
            targets = {
                "link to canary": canary / "thesis.txt",
                "link to nothing": "nothing",
                "link to itself": path.name,
                "link to the folder above": "../in",
            }
            path.symlink_to(targets[file.content])


def shows(file: OddFile, rows: Collection[str], named: str) -> bool:
    """Whether an entry has a row or is named as skipped."""
    name = file.name.decode(errors="backslashreplace")
    plain = name.isprintable() and not set(name) & set("\\'\"")
    if file.content in QUIET or not plain:
        return True  # what is in it is listed, or its name is escaped
    return name in named or any(row == name or row.startswith(f"{name}/") for row in rows)


@st.composite
def folders(draw: st.DrawFn, image: bytes) -> OddFolder:
    """One to four odd entries."""
    pairs = st.tuples(st.sampled_from(NAMES), st.sampled_from(CONTENTS))
    files = draw(st.lists(pairs, min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
    return OddFolder(tuple(OddFile(*pair) for pair in files), image)
