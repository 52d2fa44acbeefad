"""The images of one tar file, one after the other, for those who do not want it listed."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ops.text import is_utf8
from pipelines.inputs.archives import archive_members, file_etag, format_address
from pipelines.inputs.carried import Carry
from pipelines.inputs.fields import Fields
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.reading import Entry


def tar_entries(path: str, key: str) -> Iterator[Entry]:
    """The images of the tar file at `path`, in the order they are stored, as a listing has them.

    Headers are read as far as the iteration gets; content is not. `key` is the tar's own. Raises
    what archive_members raises, after all images before the defect.
    """
    etag = file_etag(os.stat(path))
    for member in archive_members(path, MemberLog(), Fields(carry=Carry(names=frozenset()))):
        if is_utf8(member.name):
            address = format_address(path, member.place)
            yield Entry(f"{key}/{member.name}", address, member.place, member.size, etag, None)
