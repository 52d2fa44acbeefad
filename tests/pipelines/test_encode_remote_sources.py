"""Encoding from object stores: the codes of an image are the same from wherever it is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ops import paths
from ops.paths import ObjectPath
from pipelines import encode, evaluate, verify
from pipelines.inputs import archives as archives_module
from pipelines.inputs import list_input, read_bytes
from pipelines.store import CodeStore
from pipelines.training.tar_streams import TarStreams, expand_tars
from tests.encode_run import EncodeRun, everything
from tests.object_servers import S3, proxy
from tests.pipelines.inputs.test_archives import write_table, write_tar
from tests.pipelines.inputs.test_remote_sources import upload

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def sources(photographs: Path, tmp_path: Path) -> Path:
    """The photographs as files, in a tar and in a table with their names."""
    images = {p.name: p.read_bytes() for p in sorted(photographs.rglob("*.*"))}
    (tmp_path / "in").mkdir()
    for name, data in images.items():
        (tmp_path / "in" / name).write_bytes(data)
    write_tar(tmp_path / "t.tar", images)
    write_table(tmp_path / "t.parquet", list(images.values()), path=list(images))
    return tmp_path


def codes_of(store: CodeStore) -> dict[str, bytes]:
    """The codes of each image by its name."""
    keys = store.index["key"].to_pylist()
    return {key: np.asarray(store[place]["codes"]).tobytes() for place, key in enumerate(keys)}


def test_codes_are_the_same_from_every_source(
    run: EncodeRun, sources: Path, bucket: ObjectPath, tmp_path: Path
) -> None:
    expected = None
    for name in ("in", "t.tar", "t.parquet"):
        there = bucket / name
        local = sources / name
        if name == "in":
            upload(local, there)
        else:
            paths.write_whole(there, local.read_bytes())
        for source in (local, there):
            run.out = tmp_path / f"{name}-{'s3' if source is there else 'disk'}.zarr"
            assert run(source) == 0, run.errors
            found = codes_of(run.store())
            assert len(found) == 10
            expected = expected or found
            assert found == expected
        before = everything(run.out)
        assert run(there) == 0
        assert "nothing to do" in run.printed
        assert everything(run.out) == before
    assert verify.main([str(run.out)]) == 0


def test_what_cannot_be_read_is_in_the_ledger_and_the_rest_is_encoded(
    run: EncodeRun, sources: Path, bucket: ObjectPath, s3: S3
) -> None:
    prefix = upload(sources / "in", bucket / "in")
    cut = (sources / "t.tar").read_bytes()
    paths.write_whole(prefix / "cut.tar", cut[: len(cut) // 2])
    paths.write_whole(prefix / "bad.parquet", bytes(1000))

    def decide(method: str, path: str) -> str:
        return "403" if method == "GET" and path.endswith("/05.jpg") else ""

    with proxy(s3, decide) as before, paths.storage_options(before.options):
        assert run(prefix) == 0
    store = run.store()
    (failed,) = store.failed.to_pylist()
    assert (failed["key"], failed["status"]) == ("05.jpg", "unreadable")
    assert "access denied" in failed["error"]
    inside = [key for key in store.index["key"].to_pylist() if key.startswith("cut.tar/")]
    assert 0 < len(inside) < 10
    assert "skipped: 'bad.parquet'" in run.printed
    assert "skipped: 'cut.tar': cannot be read to its end" in run.printed
    assert run(prefix, retry_failed=True) == 0
    assert not len(run.store().failed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["s3://no-such-bucket/x"], "there is no such bucket"),
        (["s3://{bucket}/x", "--storage-option", "endpoint=http://127.0.0.1:9"], "127.0.0.1:9"),
        (["ftp://host/x"], "--in ftp://host/x: ftp:// is not read. Give a local path, s3://"),
        (["https://user:secret@host/x"], "a URI with a password"),
    ],
)
def test_bad_input_is_one_line(
    run: EncodeRun, bucket: ObjectPath, words: list[str], message: str
) -> None:
    flags = run.flags(Path())[2:]
    words = [word.format(bucket=bucket.bucket) for word in words]
    assert encode.main(["--in", *words, *flags]) == 2
    error = run.capsys.readouterr().err
    assert message in error
    assert "secret" not in error.replace(words[0], "")
    assert error.count("\n") == 1


def test_tars_in_an_object_store_are_streamed_as_from_a_disk(
    sources: Path, bucket: ObjectPath
) -> None:
    for number in range(2):
        (sources / f"s-{number}.tar").write_bytes((sources / "t.tar").read_bytes())
        paths.write_whole(bucket / f"s-{number}.tar", (sources / "t.tar").read_bytes())
    found = []
    for data in (sources / "s-{0..1}.tar", bucket / "s-{0..1}.tar"):
        tars = expand_tars(data)
        streams = TarStreams(tars, count=2, buffer=4, seed=1, held_out_share=0.1, starts={})
        entries = [e for n in range(4) for e in streams.block(n % 2, n // 2).entries]
        found.append([(e.key, read_bytes(e.uri, e.offset, e.size, e.etag)) for e in entries])
    assert found[0] == found[1]
    paths.write_whole(bucket / "below/a/t.tar", b"")
    assert [tar.key for tar in expand_tars(bucket / "below")] == ["a/t.tar"]


def test_a_tokenizer_is_evaluated_on_images_in_an_object_store(
    sources: Path, bucket: ObjectPath, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    there, out = upload(sources / "in", bucket / "in"), tmp_path / "metrics.json"
    words = ["tokenizer", str(tiny_tokenizer), "--data", str(there), "--held-out", "1"]
    assert evaluate.main([*words, "--image-size", "32", "--most", "4", "--out", str(out)]) == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert (metrics["images"], metrics["unreadable"]) == (4, {})


def test_a_member_is_read_by_one_range(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = list_input(sources / "t.tar").entries[0]
    asked: list[int] = []
    original = archives_module.read_range
    monkeypatch.setattr(
        archives_module,
        "read_range",
        lambda uri, offset, size, etag: asked.append(size) or original(uri, offset, size, etag),
    )
    data = read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
    assert asked == [512 + len(data)]
