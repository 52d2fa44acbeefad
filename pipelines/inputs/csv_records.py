"""Records of a CSV file with a header, each a dictionary of text or the reason why it is none."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from ops.config import UserError
from ops.text import printable
from pipelines.inputs.text_lines import MAX_LINE, TextLine

DELIMITERS = ",;\t|"
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)  # Excel's own first line
COLUMNS_NAMED = 8  # in an error

Record = dict[str, str]


class HeaderError(UserError):
    """A CSV file whose first line does not name its columns."""


def csv_records(
    lines: Iterator[TextLine], columns: Sequence[str]
) -> Iterator[tuple[int, Record | str]]:
    """(line number, record or the reason why it is none) of each record but the header.

    The delimiter is the one of comma, semicolon, tab and bar with which the header has one of
    `columns`. Names of columns become lower case; they and the values lose spaces around them.
    After a record that is none, reading goes on with the line after its first. Raises HeaderError
    for a header without any, or with two columns of one name.
    """
    source = _Source(lines)
    delimiter, names = _header(source, columns)
    reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
    while (fields := _fields(source, reader)) is not None:
        number = source.taken[0].number
        if isinstance(fields, str):
            source.give_back(source.taken[1:])
            yield number, fields
        elif any(fields[len(names) :]):
            yield number, f"{len(fields)} fields, where the header has {len(names)}"
        elif any(fields):
            yield number, {name: text for name, text in zip(names, fields, strict=False) if name}


class _Source:
    """Lines for csv.reader, which remembers those of a record and takes them back."""

    def __init__(self, lines: Iterator[TextLine]) -> None:
        self._lines = lines
        self._returned: deque[TextLine] = deque()
        self.taken: list[TextLine] = []  # of the record that is being read
        self._length = 0

    def begin_record(self) -> None:
        self.taken = []
        self._length = 0

    def give_back(self, lines: list[TextLine]) -> None:
        self._returned.extendleft(reversed(lines))

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._lines)
        self.taken.append(line)
        self._length += len(line.text)
        if line.problem is not None or self._length > MAX_LINE:
            raise csv.Error(line.problem)
        return line.text


def _fields(source: _Source, reader: Iterator[list[str]]) -> list[str] | str | None:
    """The fields of the next record, or why it has none; None at the end."""
    source.begin_record()
    try:
        return [text.strip() for text in next(reader)]
    except StopIteration:
        return None
    except csv.Error as error:
        return "a quote is not closed" if len(source.taken) > 1 else str(error)


def _header(source: _Source, columns: Sequence[str]) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns."""
    first, delimiters = _first_line(source), DELIMITERS
    if match := SEPARATOR_LINE.fullmatch(first.text):
        first, delimiters = _first_line(source), match[1]
    problem = ""
    for delimiter in delimiters:
        source.give_back([first])
        fields = _fields(source, csv.reader(source, delimiter=delimiter, skipinitialspace=True))
        if isinstance(fields, str):
            problem = problem or f"its header cannot be read: {fields}"
        else:
            names = [name.lower() for name in fields or []]
            if any(column in names for column in columns):
                return delimiter, _distinct(names)
            wanted = " or ".join(f'"{printable(column, 60)}"' for column in columns)
            problem = problem or f"its header names no column {wanted}, but {_listed(names)}"
        source.give_back(source.taken[1:])
    raise HeaderError(problem)


def _first_line(source: _Source) -> TextLine:
    """The next line that is not blank."""
    source.begin_record()
    try:
        while not next(source).strip():
            pass
    except StopIteration:
        raise HeaderError("it has no header") from None
    except csv.Error as error:
        raise HeaderError(f"its header cannot be read: {error}") from None
    return source.taken[-1]


def _distinct(names: list[str]) -> list[str]:
    (repeated, count), *_ = Counter(filter(None, names)).most_common(1)
    if count > 1:
        raise HeaderError(f"{count} columns are called {printable(repeated, 80)!r}")
    return names


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(printable(name, 60)) for name in names[:COLUMNS_NAMED])
    return shown + (", ..." if len(names) > COLUMNS_NAMED else "")
