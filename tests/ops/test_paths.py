"""One interface over disks and object stores: the same results, and errors that say what to do."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import object_store, paths, transient_errors
from ops.config import ConfigError
from ops.paths import AnyPath, ExclusiveCreateError, ObjectPath, ObjectStoreError, parse_path
from ops.transient_errors import TransientError
from tests.conftest import examples
from tests.object_servers import S3, proxy

_buckets = count()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(object_store, "RETRIES", dict.fromkeys(object_store.RETRIES, 0))


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyPath]:
    if request.param == "disk":
        yield tmp_path
    elif request.param == "memory":
        yield ObjectPath("memory", f"paths-{next(_buckets)}", "a/b")
    else:
        s3: S3 = request.getfixturevalue("s3")
        with paths.storage_options(s3.options):
            yield s3.bucket() / "a/b"


# --- names


@settings(max_examples=examples(20))
@given(st.lists(st.text("abc.-_ é%#?=+", min_size=1), min_size=1, max_size=4))
def test_uris_survive_a_round_trip(parts: list[str]) -> None:
    parts = [part for part in parts if part not in (".", "..")] or ["x"]
    uri = "s3://bucket/" + "/".join(parts)
    path = parse_path(uri)
    assert isinstance(path, ObjectPath)
    assert str(path) == uri
    assert pickle.loads(pickle.dumps(path)) == path
    assert (path / "n").parent == path
    assert (path / "n").relative_to(path).as_posix() == "n"
    assert path.name == parts[-1]
    assert path.with_name("m").name == "m"


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3://b/../x", "gs://b/a//c", "s3://b/./x"])
def test_names_of_no_object_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="no name of an object"):
        parse_path(uri)


@pytest.mark.parametrize("scheme", ["az", "ftp", "file", "hdfs", "https"])
def test_unknown_schemes_are_refused_by_name(scheme: str) -> None:
    with pytest.raises(ConfigError, match=f"{scheme}:// is not read or written.*s3://"):
        parse_path(f"{scheme}://bucket/x")


def test_a_path_is_a_path(tmp_path: Path) -> None:
    assert parse_path(str(tmp_path)) == tmp_path
    assert parse_path("./s3://x") == Path("./s3://x")


# --- the interface


def test_files_and_objects_are_written_read_listed_and_removed(folder: AnyPath) -> None:
    assert not paths.exists(folder / "x")
    assert not paths.is_folder(folder / "sub")
    assert paths.file_info(folder / "x") is None
    for name, data in (("x", b"0123456789"), ("sub/1.parquet", b"one"), ("sub/2.txt", b"")):
        paths.write_whole(folder / name, data)
        assert paths.read_whole(folder / name) == data
        with paths.open_binary(folder / name) as file:
            assert file.read() == data
    assert paths.is_folder(folder / "sub")
    assert paths.read_range(folder / "x", 3, 4) == b"3456"
    assert paths.read_range(folder / "x", 8, 40) == b"89"
    assert paths.read_range(folder / "x", 40, 4) == b""
    found = {str(each.path.name): each for each in paths.find_files(folder)}
    assert {name: each.size for name, each in found.items()} == {
        "x": 10,
        "1.parquet": 3,
        "2.txt": 0,
    }
    assert paths.file_info(folder / "x") == found["x"]
    assert [path.name for path in paths.matching(folder, "*/*.parquet")] == ["1.parquet"]
    assert [path.name for path in paths.matching(folder, "sub/*.txt")] == ["2.txt"]
    assert not list(paths.matching(folder, "*.parquet"))
    paths.write_whole(folder / "x", b"changed")
    assert paths.file_info(folder / "x") != found["x"]
    paths.copy(folder / "x", folder / "y")
    assert paths.holds(folder / "y", b"changed")
    for _ in range(2):
        paths.remove(folder / "x")
    assert not paths.exists(folder / "x")
    assert not paths.holds(folder / "x", b"changed")
    with pytest.raises(FileNotFoundError):
        paths.read_whole(folder / "x")


def test_the_second_exclusive_create_loses(folder: AnyPath) -> None:
    assert paths.create_once(folder / "part", b"first")
    assert not paths.create_once(folder / "part", b"second")
    assert paths.create_once(folder / "part", b"first")  # as one that is tried again
    assert paths.read_whole(folder / "part") == b"first"
    before = [each.path for each in paths.find_files(folder)]
    paths.check_exclusive_create(folder)
    assert [each.path for each in paths.find_files(folder)] == before


def test_an_object_is_read_by_ranges_as_a_file_is(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_READ_BYTES", 100)
    monkeypatch.setattr(object_store, "BLOCK_BYTES", 64)
    data = os.urandom(1000)
    with paths.storage_options(s3.options):
        path = s3.bucket() / "large"
        paths.write_whole(path, data)
        with paths.open_binary(path) as file:
            same = io.BytesIO(data)
            for offset, whence, size in (
                (-16, 2, 99),
                (5, 0, 8),
                (90, 0, 300),
                (-4, 1, 4),
                (7, 0, 0),
            ):
                assert file.seek(offset, whence) == same.seek(offset, whence)
                assert file.read(size) == same.read(size)
            file.seek(0)
            assert file.read() == data


def test_large_objects_are_written_in_parts(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "MULTIPART_BYTES", 5 << 20)
    data = bytes(11 << 20)
    seen = []

    def decide(method: str, path: str) -> str:
        seen.append(f"{method} {path}")
        return ""

    with proxy(s3, decide) as before, paths.storage_options(before.options):
        path = s3.bucket() / "large"
        paths.write_whole(path, data)
        assert paths.read_whole(path) == data
    assert sum("partNumber" in line for line in seen) == 3


# --- a network that fails


@pytest.mark.parametrize("fault", ["503", "429", "reset", "lost", "twice", "slow"])
def test_a_create_that_meets_faults_wins_once(s3: S3, fault: str) -> None:
    faults = iter([fault, "", "", "", ""])

    def decide(method: str, path: str) -> str:
        return next(faults, "") if "part" in path else ""

    with proxy(s3, decide) as before, paths.storage_options(before.options):
        folder = s3.bucket()
        assert paths.create_once(folder / "part", b"mine")
        assert not paths.create_once(folder / "part", b"other")
        assert s3.objects(folder) == {"part": b"mine"}


def test_a_create_that_arrives_late_overwrites_nothing(s3: S3) -> None:
    faults = iter(["late"])

    def decide(method: str, path: str) -> str:
        return next(faults, "") if method == "PUT" else ""

    with proxy(s3, decide) as before, paths.storage_options(before.options):
        folder = s3.bucket()
        assert paths.create_once(folder / "part", b"mine")  # tried again after the first was kept
        assert before.release() == [412]
        assert s3.objects(folder) == {"part": b"mine"}


@pytest.mark.parametrize("fault", ["503", "429", "reset", "lost", "twice"])
def test_reads_writes_and_listings_are_tried_again(s3: S3, fault: str) -> None:
    turn = count()
    with (
        proxy(s3, lambda *_: fault if next(turn) % 2 == 0 else "") as before,
        paths.storage_options(before.options),
    ):
        folder = s3.bucket() / "f"
        paths.write_whole(folder / "x", b"12345")
        assert paths.read_whole(folder / "x") == b"12345"
        assert paths.read_range(folder / "x", 1, 2) == b"23"
        assert paths.exists(folder / "x")
        assert [each.size for each in paths.find_files(folder)] == [5]
        paths.copy(folder / "x", folder / "y")
        paths.remove(folder / "x")
        assert s3.objects(folder) == {"y": b"12345"}
        assert before.counts[fault] >= 4


def test_what_never_works_ends_as_one_line(s3: S3) -> None:
    with (
        proxy(s3, lambda *_: "503") as before,
        paths.storage_options(before.options),
        pytest.raises(TransientError) as raised,
    ):
        paths.write_whole(s3.bucket() / "x", b"")
    message = str(raised.value)
    assert "503" in message
    assert "after 3 tries" in message
    assert "endpoint" in message
    assert "\n" not in message


def test_a_store_that_ignores_conditions_is_refused(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(s3, lambda *_: "") as before, paths.storage_options(before.options):
        forward = before.forward

        def unconditional(method: str, path: str, body: bytes, headers: dict[str, str]) -> Any:
            kept = {n: v for n, v in headers.items() if n.lower() != "if-none-match"}
            return forward(method, path, body, kept)

        monkeypatch.setattr(before, "forward", unconditional)
        bucket = s3.bucket()
        with pytest.raises(ExclusiveCreateError, match="ignores If-None-Match"):
            paths.check_exclusive_create(bucket / "a")
        assert not s3.objects(bucket)


# --- what is asked of a store that it cannot do


def test_a_bucket_that_does_not_exist_is_named(s3: S3) -> None:
    nowhere = ObjectPath("s3", "no-such-bucket", "x")
    with paths.storage_options(s3.options):
        for use in (
            lambda: paths.read_whole(nowhere),
            lambda: paths.write_whole(nowhere, b""),
            lambda: paths.create_once(nowhere, b""),
            lambda: list(paths.find_files(nowhere)),
            lambda: paths.check_exclusive_create(nowhere),
        ):
            with pytest.raises(ObjectStoreError, match=r"no such bucket\. Make it"):
                use()


@pytest.mark.parametrize("status", ["401", "403"])
def test_credentials_that_fail_are_named(s3: S3, status: str) -> None:
    with (
        proxy(s3, lambda *_: status) as before,
        paths.storage_options(before.options),
        pytest.raises(ObjectStoreError, match=r"access denied.*AWS_ACCESS_KEY_ID"),
    ):
        paths.read_whole(s3.bucket() / "x")


def test_an_endpoint_that_is_down_is_named(s3: S3) -> None:
    options = {**s3.options, "endpoint": "http://127.0.0.1:9"}
    with (
        paths.storage_options(options),
        pytest.raises(TransientError, match=r"127.0.0.1:9.*endpoint"),
    ):
        paths.read_whole(ObjectPath("s3", "bucket", "x"))


def test_options_that_a_store_does_not_have_are_named() -> None:
    with paths.storage_options({"colour": "blue"}), pytest.raises(ConfigError, match="colour"):
        paths.read_whole(ObjectPath("s3", "bucket", "x"))
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        paths.parse_options(["endpoint"])


def test_a_forked_process_fails_instead_of_waiting(s3: S3) -> None:
    with paths.storage_options(s3.options):
        path = s3.bucket() / "x"
        paths.write_whole(path, b"1")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                paths.read_whole(path)
            except ObjectStoreError as error:
                code = 0 if "forkserver" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0


# --- disks without hard links


def test_disks_without_hard_links_are_found_by_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    paths.check_exclusive_create(tmp_path)
    assert not list(tmp_path.iterdir())


def test_disks_that_link_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda source, target: None)
    with pytest.raises(ExclusiveCreateError, match="same name twice"):
        paths.check_exclusive_create(tmp_path)
    assert not list(tmp_path.iterdir())
