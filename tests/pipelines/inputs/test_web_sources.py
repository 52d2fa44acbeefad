"""Inputs at web servers and at a hub of data sets, read through fsspec."""

from __future__ import annotations

import importlib
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import huggingface_hub
import pytest

from ops import transient_errors
from ops.images import ImageError
from ops.transient_errors import TransientError
from ops.web_files import WebError
from ops.web_paths import WebPath
from pipelines.inputs import InputError, Listing, list_input, read_bytes
from pipelines.inputs.listing import list_sources
from tests.pipelines.inputs.test_archives import write_table, write_tar
from tests.web_servers import FileServer, served, use_tls


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS", (0.0, 0.0, 0.0))


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """Three photographs as files, in a tar and in a table, and a list of them."""
    root = tmp_path / "in"
    (root / "lake").mkdir(parents=True)
    images = sorted((photographs / "lake").iterdir())[:3]
    for path in images:
        (root / "lake" / path.name).write_bytes(path.read_bytes())
    write_tar(root / "t.tar", {path.name: path.read_bytes() for path in images})
    write_table(root / "t.parquet", [path.read_bytes() for path in images])
    (root / "list.csv").write_text("\n".join(["file", *(f"lake/{p.name}" for p in images)]))
    return root


@pytest.fixture
def web(folder: Path) -> Iterator[FileServer]:
    with served(FileServer(folder)) as server:
        yield server


def contents(listing: Listing) -> dict[str, bytes]:
    return {e.key: read_bytes(e.uri, e.offset, e.size, e.etag) for e in listing.entries}


@pytest.mark.parametrize("name", ["t.tar", "t.parquet", "list.csv", "lake/01.jpg"])
def test_files_at_a_server_are_those_on_a_disk(web: FileServer, folder: Path, name: str) -> None:
    remote = list_sources(WebPath(f"http://{web.host}/{name}"))
    assert contents(remote) == contents(list_sources(folder / name))
    assert len(contents(remote)) == (1 if name == "lake/01.jpg" else 3)


def test_patterns_are_brace_lists_alone(web: FileServer, folder: Path) -> None:
    remote = list_sources(WebPath(f"http://{web.host}/t.{{tar,parquet}}"))
    assert contents(remote) == contents(list_sources(folder / "t.{tar,parquet}"))
    with pytest.raises(InputError, match="does not exist"):
        list_input(WebPath(f"http://{web.host}/*.tar"))
    with pytest.raises(InputError, match=r"1 of its 2 files do not exist"):
        list_input(WebPath(f"http://{web.host}/{{t,u}}.tar"))


def test_lists_name_files_by_https(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FileServer(folder)
    trusted = ssl.create_default_context(cafile=use_tls(server, tmp_path))
    monkeypatch.setitem(fsspec.config.conf, "https", {"ssl": trusted})
    with served(server):
        rows = [f"https://{server.host}/lake/{name}?v=1" for name in ("01.jpg", "03.jpg", "no.jpg")]
        (tmp_path / "list.csv").write_text("\n".join(["file", *rows, "https://127.0.0.1:9/x.jpg"]))
        listing = list_sources(tmp_path / "list.csv")
        assert [e.key for e in listing.entries] == [row.removeprefix("https://") for row in rows]
        first, second, missing = listing.entries
        for entry, name in ((first, "01.jpg"), (second, "03.jpg")):
            data = read_bytes(entry.uri, None, entry.size, entry.etag)
            assert data == (folder / "lake" / name).read_bytes()
        with pytest.raises(ImageError) as caught:
            read_bytes(missing.uri, None, missing.size, missing.etag)
        assert caught.value.reason == "missing"
        ((key, why),) = listing.skipped
        assert key == "list.csv:5"
        assert why.startswith("unreachable: ")
        server.decide = lambda path: 503
        with pytest.raises(ImageError) as caught:  # the other images are to be encoded
            read_bytes(first.uri, None, first.size, first.etag)
        assert caught.value.reason == "unreachable"


def test_what_a_server_refuses_is_said(web: FileServer) -> None:
    tar = WebPath(f"http://{web.host}/t.tar")
    entry = list_input(tar).entries[-1]
    for status, message in ((403, "access denied"), (418, "refused by its server")):
        web.decide = lambda path, status=status: status
        with pytest.raises(InputError, match=message):
            list_input(tar)
    web.decide = lambda path: 503
    with pytest.raises(TransientError, match="status 503"):
        read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
    web.decide = lambda path: 0
    web.ranges = False
    with pytest.raises(ImageError, match="gives no parts of files: download it"):
        read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:9"):
        list_input(WebPath("http://127.0.0.1:9/t.tar"))


def test_a_hub_s_data_set_is_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client against a stand-in for the hub on the loopback interface."""
    with served(FileServer(folder, hub=True)) as hub:
        endpoint = f"http://{hub.host}"
        original = huggingface_hub.HfFileSystem
        monkeypatch.setattr(
            fsspec, "filesystem", lambda scheme: original(endpoint=endpoint, token=False)
        )
        remote = list_sources(WebPath("hf://datasets/owner/name"))
        assert contents(remote) == contents(list_sources(folder))
        assert list_sources(WebPath("hf://datasets/owner/name/*.tar")).table["key"].to_pylist() == [
            "t.tar/01.jpg", "t.tar/03.jpg", "t.tar/05.jpg",
        ]  # fmt: skip
        assert len(contents(list_sources(WebPath("hf://datasets/owner/name/t.parquet")))) == 3
        with pytest.raises(InputError, match="does not exist"):
            list_input(WebPath("hf://datasets/owner/name/none"))
        with pytest.raises(InputError, match="does not exist"):
            list_input(WebPath("hf://datasets/nobody/none"))


def test_without_the_hub_s_package_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, "hf", raising=False)
    with pytest.raises(WebError, match=r"needs the package huggingface_hub.*smalti\[hf\]"):
        list_input(WebPath("hf://datasets/owner/name"))
