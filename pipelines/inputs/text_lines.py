"""Lines of a text file that a user names: any Unicode encoding with its mark, bounded in length."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TextIO

from ops.config import UserError
from ops.web_paths import SourcePath
from pipelines.inputs.packed_files import packed_kind
from pipelines.inputs.source_files import open_file

MAX_LINE = 1 << 20  # characters; longer lines are read past, not kept
MARK = "\ufeff"
#: First bytes -> encoding. UTF-32 comes first: its mark starts with that of UTF-16.
MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
PARQUET = b"PAR1"


class NotTextError(UserError):
    """A file that is compressed, a spreadsheet or the like."""


class TextLine(NamedTuple):
    """A line with its end, and why it cannot be used, if so."""

    number: int  # from 1
    text: str
    problem: str | None


def text_lines(path: SourcePath) -> Iterator[TextLine]:
    """The lines of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Raises NotTextError where its first bytes are those of another kind of file, NotRegularError for
    a folder or pipe, and OSError where it cannot be read.
    """
    with open_file(str(path)) as file:
        encoding = _encoding(path, file)
        errors = "surrogateescape" if encoding == "utf-8" else "replace"
        with io.TextIOWrapper(file, encoding, errors, newline="") as text:
            number = 0
            while line := text.readline(MAX_LINE + 1):
                number += 1
                too_long = len(line) > MAX_LINE
                if too_long:
                    _skip_line(text, line)
                # Files with marks may have been joined to one.
                line = line.removeprefix(MARK)
                yield TextLine(number, line, _problem(line, encoding, too_long))


def _encoding(path: SourcePath, file: BinaryIO) -> str:
    head = file.read(8)
    file.seek(0)
    kind = "a Parquet table" if head.startswith(PARQUET) else packed_kind(head)
    if kind is not None:
        raise NotTextError(f"{path} is {kind}, not text. Unpack or convert it first.")
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")


def _skip_line(text: TextIO, line: str) -> None:
    while line and not line.endswith(("\n", "\r")):
        line = text.readline(MAX_LINE)


def _problem(line: str, encoding: str, too_long: bool) -> str | None:
    if too_long:
        return f"longer than {MAX_LINE:,} characters"
    if "\0" in line:
        return "it has NUL characters; save the file as UTF-8"
    if line.isascii():
        return None
    try:
        line.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 were decoded to lone surrogates
        return "not UTF-8"
    if encoding != "utf-8" and "\ufffd" in line:
        return f"not {encoding.upper()}"
    return None
