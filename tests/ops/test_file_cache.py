"""A bounded cache of whole objects: right, shared, and safe against kills and full disks."""

from __future__ import annotations

import errno
import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import BinaryIO

import pytest

from ops import file_cache, paths
from ops.disk_errors import DiskError
from ops.file_cache import CorruptObjectError, FileCache
from ops.paths import ObjectPath

_buckets = count()


@pytest.fixture
def objects() -> list[tuple[ObjectPath, str]]:
    folder = ObjectPath("memory", f"cache-{next(_buckets)}", "x")
    found = []
    for number in range(5):
        data = bytes([number]) * 100
        paths.write_whole(folder / str(number), data)
        found.append((folder / str(number), hashlib.sha256(data).hexdigest()))
    return found


def kept(folder: Path) -> set[bytes]:
    return {p.read_bytes()[:1] for p in folder.rglob("*") if p.is_file() and p.suffix == ""}


def test_the_copies_used_last_are_kept(
    objects: list[tuple[ObjectPath, str]], tmp_path: Path
) -> None:
    other = tmp_path / "tokenizers" / "a"
    other.mkdir(parents=True)
    cache = FileCache(tmp_path, 300)
    for number in (0, 1, 2, 0, 3):
        assert cache.get(*objects[number]).read_bytes() == bytes([number]) * 100
    assert kept(tmp_path) == {b"\0", b"\2", b"\3"}
    FileCache(tmp_path, 50).get(*objects[4])  # larger than the bound: it alone is kept
    assert kept(tmp_path) == {b"\4"}
    assert other.is_dir()  # what else lies there is left alone


def test_threads_and_copies_of_the_cache_download_once(
    objects: list[tuple[ObjectPath, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []
    download = file_cache.download

    def counting(path: ObjectPath, target: BinaryIO) -> None:
        downloads.append(path)
        download(path, target)

    monkeypatch.setattr(file_cache, "download", counting)
    caches = [FileCache(tmp_path, 1000), pickle.loads(pickle.dumps(FileCache(tmp_path, 1000)))]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: caches[n % 2].get(*objects[n % 2]), range(32)))
    assert sorted(downloads) == [objects[0][0], objects[1][0]]


def test_another_content_than_the_hash_says_is_never_kept(
    objects: list[tuple[ObjectPath, str]], tmp_path: Path
) -> None:
    with pytest.raises(CorruptObjectError, match="Run verify"):
        FileCache(tmp_path, 1000).get(objects[0][0], objects[1][1])
    with pytest.raises(FileNotFoundError):
        FileCache(tmp_path, 1000).get(objects[0][0].with_name("none"), "0" * 64)
    assert not kept(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_full_disk_drops_older_copies_first_then_says_so(
    objects: list[tuple[ObjectPath, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path, 1000)
    cache.get(*objects[0])
    download = file_cache.download

    def full_while_others_are_kept(path: ObjectPath, target: BinaryIO) -> None:
        if kept(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
        download(path, target)

    monkeypatch.setattr(file_cache, "download", full_while_others_are_kept)
    cache.get(*objects[1])
    assert kept(tmp_path) == {b"\1"}

    def full(path: ObjectPath, target: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_cache, "download", full)
    with pytest.raises(DiskError, match=r"No space left on device\. Make room.*--cache-dir"):
        cache.get(*objects[2])
    assert not list(tmp_path.rglob("*.partial"))
