"""Inputs in object stores: what is listed and read there is what is on a disk, by few requests."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import paths
from ops.config import ConfigError
from ops.images import ImageError
from ops.object_store import ObjectStoreError
from ops.paths import ObjectPath
from ops.range_reader import LEAST_AHEAD, MOST_AHEAD, ReadAhead
from ops.transient_errors import TransientError
from ops.web_paths import WebPath, parse_source
from pipelines.inputs import (
    Fields,
    InputError,
    Listing,
    input_sources,
    list_input,
    read_bytes,
    read_end,
)
from pipelines.inputs import source_files as source_files_module
from pipelines.inputs.listing import list_sources
from pipelines.planning import ArchiveLists
from tests.object_servers import S3, in_turn, proxy, request
from tests.pipelines.inputs.test_archives import write_table, write_tar

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """Photographs in folders, with a hidden file, a hidden folder, a Zarr store and a text."""
    images = {path.relative_to(photographs): path for path in sorted(photographs.rglob("*.*"))}
    root = tmp_path / "in"
    for name, path in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(path.read_bytes())
    first = next(iter(images.values())).read_bytes()
    for name in ("plain", ".hidden.png", ".folder/a.png", "s.zarr/a.png", "s.zarr/~/b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(first)
    (root / "s.zarr/zarr.json").write_text("{}")
    (root / "notes.txt").write_text("no image")
    write_tar(root / "t.tar", {p.name: p.read_bytes() for p in list(images.values())[:3]})
    write_table(root / "t.parquet", [p.read_bytes() for p in list(images.values())[:3]])
    return root


def upload(folder: Path, prefix: ObjectPath) -> ObjectPath:
    for path in folder.rglob("*"):
        if path.is_file():
            paths.write_whole(prefix / path.relative_to(folder).as_posix(), path.read_bytes())
    return prefix


def contents(listing: Listing) -> dict[str, bytes]:
    return {e.key: read_bytes(e.uri, e.offset, e.size, e.etag) for e in listing.entries}


def test_a_prefix_has_the_images_of_the_same_folder_on_a_disk(
    folder: Path, bucket: ObjectPath, s3: S3
) -> None:
    prefix = upload(folder, bucket / "deep/images")
    for mark in ("", "lake/"):
        request(s3.port, "PUT", f"/{bucket.bucket}/deep/images/{mark}")  # as consoles make folders
    paths.write_whole(bucket / "deep/images2/no.png", b"of another prefix")
    local, remote = list_sources(folder), list_sources(prefix)
    assert contents(remote) == contents(local)
    assert len(contents(local)) == 17
    for column in ("key", "size", "label_name"):
        assert remote.table[column] == local.table[column]
    assert {key for key, _ in remote.skipped} == {key for key, _ in local.skipped}
    assert dict(remote.skipped)["s.zarr"] == "a Zarr store"
    assert remote.unread == local.unread == []
    for entry in remote.entries:
        data = read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
        assert read_end(entry.uri, entry.offset, entry.size, 10) == data[-10:]


@pytest.mark.parametrize(
    "pattern",
    ["lake/*.jpg", "*", "**/0[0-3].*", "{lake,wood}", "t.{tar,parquet}", "wood/0{0..2..2}.jpg"],
)
def test_patterns_name_the_same_files_as_on_a_disk(
    folder: Path, bucket: ObjectPath, pattern: str
) -> None:
    prefix = upload(folder, bucket / "in")
    remote = list_sources(parse_source(f"{prefix}/{pattern}"))
    assert contents(remote) == contents(list_sources(folder / pattern))


def test_lists_name_remote_files(photographs: Path, bucket: ObjectPath, tmp_path: Path) -> None:
    prefix = upload(photographs, bucket / "in")
    names = ["lake/01.jpg", "wood/02.jpg"]
    rows = [{"path": f"{prefix}/{name}", "kind": name[:4]} for name in names]
    local = tmp_path / "list.jsonl"
    local.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"path": "s3://x//y"}]))
    listing = list_sources(local, "field", Fields(label_column="kind"))
    assert listing.table["key"].to_pylist() == [f"{bucket.bucket}/in/{name}" for name in names]
    assert listing.table["label_name"].to_pylist() == ["lake", "wood"]
    assert list(contents(listing).values()) == [(photographs / name).read_bytes() for name in names]
    assert [key for key, _ in listing.skipped] == ["list.jsonl:3"]
    # One that is remote: relative names lie below its own folder, and none is of this machine.
    there = prefix / "list.csv"
    lines = ["file", *names, f"{prefix}/lake/03.jpg", str(photographs / "lake/01.jpg"), "../x.jpg"]
    paths.write_whole(there, "\n".join(lines).encode())
    listing = list_sources(there)
    assert listing.table["key"].to_pylist() == [f"{bucket.bucket}/in/lake/03.jpg", *names]
    assert len(contents(listing)) == 3
    assert {reason for _, reason in listing.skipped} == {
        "a path out of the folder of a list that is remote"
    }
    table = prefix / "list.parquet"
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": names}), buffer)
    paths.write_whole(table, buffer.getvalue())
    assert list_sources(table).table["key"].to_pylist() == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://127.0.0.1/x.png", "http:// is not read from a list"),
        ("ftp://host/x.png", "ftp:// is not read"),
        ("https://user:secret@host/x.png", "a URI with a password"),
        ("hf://models/x", "give hf://datasets/"),
    ],
)
def test_uris_that_lists_may_not_name(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"file\n{text}\n")
    ((_, found),) = list_sources(tmp_path / "list.csv").skipped
    assert reason in found
    assert "secret" not in found


# --- requests


@pytest.fixture
def counted(s3: S3) -> Iterator[tuple[ObjectPath, list[str]]]:
    """A bucket, and "METHOD name" of each request to it."""
    made: list[str] = []

    def decide(method: str, path: str) -> str:
        made.append(f"{method} {path.partition('?')[0].rpartition('/')[2]}")
        return ""

    with proxy(s3, decide) as before, paths.storage_options(before.options):
        yield s3.bucket(), made


def test_requests_are_few_and_a_resume_lists_nothing_again(
    counted: tuple[ObjectPath, list[str]], folder: Path, tmp_path: Path
) -> None:
    bucket, made = counted
    prefix = upload(folder, bucket / "in")
    lists = ArchiveLists(tmp_path)
    made.clear()
    listing = list_input(prefix, cache=lists)
    # One read of a tar's headers, and a table's footer and its names.
    assert {line for line in made if "." in line} == {"GET notes.txt", "GET t.parquet", "GET t.tar"}
    assert made.count("GET t.tar") == 1
    assert made.count("GET t.parquet") <= 3
    assert made.count("GET plain") == 1
    made.clear()
    again = list_input(prefix, cache=lists)
    assert again.table == listing.table
    assert not [line for line in made if "t." in line]
    made.clear()
    entries = {e.key: e for e in listing.entries}
    for entry in (entries["lake/01.jpg"], entries["t.tar/01.jpg"]):
        read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
    rows = [e for e in listing.entries if e.key.startswith("t.parquet")]
    for entry in rows:
        read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
    assert made.count("GET 01.jpg") == made.count("GET t.tar") == 1
    assert made.count("GET t.parquet") <= 2  # the rows of a group are read together
    assert not [line for line in made if line.startswith("HEAD")]


def test_headers_far_apart_are_read_and_what_is_between_them_is_not(
    bucket: ObjectPath, tmp_path: Path
) -> None:
    big = bytes(3 << 20)
    tar = write_tar(tmp_path / "t.tar", {f"{n}.png": big for n in range(3)})
    paths.write_whole(bucket / "t.tar", tar.read_bytes())
    read: list[int] = []
    original = source_files_module.read_range

    def noted(uri: str, offset: int, size: int, etag: str = "") -> bytes:
        read.append(size)
        return original(uri, offset, size, etag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_files_module, "read_range", noted)
        assert len(list_input(bucket / "t.tar").table) == 3
    assert len(read) <= 5
    assert sum(read) <= 5 * MOST_AHEAD // 4


@given(st.lists(st.integers(0, 3 << 16), max_size=40), st.integers(0, 1 << 20))
def test_reading_ahead_gives_the_bytes_of_the_file(steps: list[int], length: int) -> None:
    data = bytes(range(251)) * (length // 251 + 1)
    data = data[:length]
    asked: list[int] = []

    def read(offset: int, size: int) -> bytes:
        asked.append(size)
        return data[offset : offset + size]

    ahead, offset = ReadAhead(read), 0
    for step in steps:
        assert ahead.read_at(offset, 1024) == data[offset : offset + 1024]
        offset += step
    assert all(LEAST_AHEAD <= size <= MOST_AHEAD for size in asked)


# --- what has changed, is missing or damaged


def test_what_changes_after_listing_is_noticed(bucket: ObjectPath, tmp_path: Path) -> None:
    images = {"1.png": b"\x89PNG one", "2.png": b"\x89PNG two"}
    write_tar(tmp_path / "t.tar", images)
    write_table(tmp_path / "t.parquet", [b"\x89PNG one", b"\x89PNG two"])
    for name, data in {"1.png": b"\x89PNG one"}.items():
        (tmp_path / name).write_bytes(data)
    prefix = upload(tmp_path, bucket / "in")
    before = list_input(prefix)
    write_tar(tmp_path / "t.tar", dict(reversed(images.items())))
    write_table(tmp_path / "t.parquet", [b"\x89PNG two", b"\x89PNG one"])
    (tmp_path / "1.png").write_bytes(b"\x89PNG longer")
    upload(tmp_path, prefix)
    for entry in before.entries:
        with pytest.raises(ImageError) as caught:
            read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
        assert caught.value.reason == "changed", entry.key
    after = list_input(prefix)
    assert len(contents(after)) == 5
    assert not set(before.table["etag"].to_pylist()) & set(after.table["etag"].to_pylist())
    for each in paths.find_files(prefix):
        paths.remove(each.path)
    source_files_module._recent.clear()
    for entry in after.entries:
        with pytest.raises(ImageError) as caught:
            read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
        assert caught.value.reason == "missing"


def test_damaged_archives_are_named_and_the_rest_is_listed(
    bucket: ObjectPath, tmp_path: Path
) -> None:
    image = b"\x89PNG" + bytes(2000)
    tar = write_tar(tmp_path / "cut.tar", {f"{n}.png": image for n in range(3)})
    tar.write_bytes(tar.read_bytes()[:4000])
    table = write_table(tmp_path / "bad.parquet", [image])
    table.write_bytes(table.read_bytes()[:-20] + bytes(20))
    write_tar(tmp_path / "good.tar", {"1.png": image})
    remote, local = list_input(upload(tmp_path, bucket / "in")), list_input(tmp_path)
    assert remote.table["key"].to_pylist() == ["cut.tar/0.png", "good.tar/1.png"]
    assert remote.unread == ["bad.parquet", "cut.tar"]
    assert remote.skipped == local.skipped


def test_a_store_that_fails_now_and_then_is_asked_again(
    s3: S3, folder: Path, bucket: ObjectPath
) -> None:
    prefix = upload(folder, bucket / "in")
    faults = ("503", "reset", "429")
    with proxy(s3, in_turn(faults, every=3)) as before, paths.storage_options(before.options):
        assert contents(list_input(prefix)) == contents(list_input(folder))
        assert min(before.counts[fault] for fault in faults) > 1
    with proxy(s3, lambda *_: "503") as before, paths.storage_options(before.options):
        with pytest.raises(TransientError, match="Check the network"):
            list_input(prefix)
        with pytest.raises(TransientError):
            read_bytes(f"{prefix}/lake/01.jpg", None, 10)


def test_what_one_file_may_not_be_read_is_said_of_it_alone(
    s3: S3, folder: Path, bucket: ObjectPath
) -> None:
    prefix = upload(folder, bucket / "in")

    def decide(method: str, path: str) -> str:
        return "403" if method == "GET" and re.search(r"t\.tar|lake/01", path) else ""

    with proxy(s3, decide) as before, paths.storage_options(before.options):
        listing = list_input(prefix)
        assert listing.unread == ["t.tar"]
        assert "access denied" in dict(listing.skipped)["t.tar"]
        entry = next(e for e in listing.entries if e.key == "lake/01.jpg")
        with pytest.raises(ImageError, match="access denied"):
            read_bytes(entry.uri, None, entry.size, entry.etag)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://no-such-bucket/in", "there is no such bucket"),
        ("s3://{bucket}/none", "does not exist"),
        ("s3://{bucket}/none/*.tar", "matches no file"),
        ("s3://{bucket}/t-{{0..3}}.tar", "4 of its 4 files do not exist"),
        ("s3://b{{a,b}}/x", "no wildcards are read in the name of a bucket"),
        ("ftp://host/x", "ftp:// is not read. Give a local path, s3://"),
        ("hf://spaces/a/b", "give hf://datasets/"),
        ("https:///x", "no URI of a file"),
    ],
)
def test_what_cannot_be_listed_is_one_line(bucket: ObjectPath, text: str, message: str) -> None:
    with pytest.raises((InputError, ConfigError, ObjectStoreError)) as caught:
        list_input(parse_source(text.format(bucket=bucket.bucket)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_object_whose_name_has_an_empty_part_is_named(s3: S3, bucket: ObjectPath) -> None:
    request(s3.port, "PUT", f"/{bucket.bucket}/in//x.png", b"1")
    with pytest.raises(ObjectStoreError, match=r"in//x\.png.*Rename"):
        list_input(bucket / "in")


def test_paths_at_servers() -> None:
    path = parse_source("https://host:81/a/b.tar?token=1")
    assert isinstance(path, WebPath)
    assert (path.name, path.suffix, path.host) == ("b.tar", ".tar", "host:81")
    assert path.parent / "c d.png" == WebPath("https://host:81/a/c%20d.png")
    data = WebPath("hf://datasets/owner/name/")
    assert data == data.parent / "name" == WebPath("hf://datasets/owner/name")
    (source,) = input_sources(WebPath("https://host/what?a=[1]*"))
    assert source.path.name == "what"  # no glob: the question mark begins a query
