"""The images of one archive as a table, which can be kept so that it is not listed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from ops.files import NotRegularError
from ops.text import is_utf8
from pipelines.inputs.archives import (
    ArchiveError,
    Member,
    NoImagesError,
    archive_members,
)
from pipelines.inputs.fields import Fields
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.source_files import FileStatus, remember, status_of

BATCH = 65536  # members kept as Python objects before they become columns
CARRIED_BYTES = 256 << 20  # of captions and columns of an archive, beyond four times its own size
NOT_REGULAR = "not a regular file"
NOT_UTF8 = "its name is not UTF-8: rename it"

MEMBER_SCHEMA = pa.schema(
    [
        pa.field("name", pa.large_string(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.large_string()),
        pa.field("caption", pa.large_string()),
        pa.field("carried", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class Members:
    """What an archive holds."""

    table: pa.Table  # MEMBER_SCHEMA, in the order they are stored
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    notes: list[str] = field(default_factory=list)  # what else it holds
    defect: str | None = None  # why it holds no images, or cannot be read to its end
    complete: bool = True  # whether it was read to its end


class MemberCache(Protocol):
    """Keeps what archives hold, by path; `description` is that of the fields which were read."""

    def read(self, path: str, etag: str, description: str) -> Members | None: ...

    def write(self, path: str, etag: str, description: str, members: Members) -> None: ...


def list_members(
    path: str,
    status: FileStatus | None,
    fields: Fields,
    cache: MemberCache | None = None,
) -> tuple[str, Members]:
    """The etag and members of an archive, from `cache` where it has not changed since.

    `status` is its own where that is known. A defect of the archive, or of the disk, is named in
    the result. Raises OSError where the file cannot be examined.
    """
    status = status or status_of(path)
    remember(path, status)
    etag = status.etag
    found = cache.read(path, etag, fields.description) if cache is not None else None
    if found is not None:
        return etag, found
    log, table = MemberLog(), _TableBuilder()
    defect, complete, keep = None, True, True
    most = CARRIED_BYTES + 4 * status.size
    try:
        for member in archive_members(path, log, fields):
            if not is_utf8(member.name):
                log.skip(escaped(member.name), NOT_UTF8)
                continue
            table.add(member)
            if table.carried_bytes > most:
                raise ArchiveError(
                    f"its captions and columns have more than {most:,} bytes: name with --carry "
                    "those that are wanted"
                )
    except NotRegularError:
        defect, keep = NOT_REGULAR, False
    except NoImagesError as error:
        defect = str(error)
    except ArchiveError as error:
        defect, complete = f"cannot be read to its end: {error}", False
    except OSError as error:
        defect, complete = f"cannot be read to its end: {error.strerror or error}", False
        keep = False
    members = Members(table.table(), log.skipped, log.lines(), defect, complete)
    if cache is not None and keep:
        cache.write(path, etag, fields.description, members)
    return etag, members


class _TableBuilder:
    """Collects members in columns."""

    def __init__(self) -> None:
        self.carried_bytes = 0
        self._members: list[Member] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, member: Member) -> None:
        self._members.append(member)
        self.carried_bytes += len(member.carried.caption or "") + len(member.carried.values or "")
        if len(self._members) == BATCH:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self._batches, MEMBER_SCHEMA)

    def _flush(self) -> None:
        rows: Sequence[tuple[object, ...]] = [
            (m.name, m.place, m.size, m.label, *m.carried) for m in self._members
        ]
        columns = zip(*rows, strict=True) if rows else ((),) * len(MEMBER_SCHEMA)
        arrays = [
            pa.array(values, column.type)
            for values, column in zip(columns, MEMBER_SCHEMA, strict=True)
        ]
        self._batches.append(pa.record_batch(arrays, schema=MEMBER_SCHEMA))
        self._members.clear()


def escaped(name: str) -> str:
    """`name` with bytes that are not UTF-8 written as escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
