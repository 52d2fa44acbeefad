"""Reading the bytes of listed images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ops.images import ImageError
from pipelines.inputs.reading import MAX_BYTES, content_hash, read_bytes


def test_bytes_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"0123456789")
    assert read_bytes(str(path), None, 10) == b"0123456789"
    assert read_bytes(str(path), 3, 4) == b"3456"
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)  # without a writer
    for arguments, reason in [
        ((str(path), None, 9), "changed"),
        ((str(path), 8, 4), "changed"),
        ((str(tmp_path / "b.png"), None, 9), "missing"),
        ((str(tmp_path), None, 9), "unreadable"),
        ((str(pipe), None, 0), "unreadable"),
        ((str(path), None, MAX_BYTES + 1), "too large"),
    ]:
        with pytest.raises(ImageError) as caught:
            read_bytes(*arguments)
        assert caught.value.reason == reason


def test_content_hash_depends_on_every_byte() -> None:
    hashes = {content_hash(data) for data in (b"", b"a", b"b", b"ab", bytes(1000), bytes(1001))}
    assert len(hashes) == 6
    assert {len(digest) for digest in hashes} == {32}
