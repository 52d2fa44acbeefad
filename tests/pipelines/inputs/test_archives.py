"""Tar files and Parquet tables of images: listing, reading in place, encoding, training."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.images import ImageError
from pipelines import train_tokenizer
from pipelines.inputs.archives import parse_address
from pipelines.inputs.listing import list_input
from pipelines.inputs.parquet import group_of
from pipelines.inputs.patterns import InputError
from pipelines.inputs.reading import read_bytes, read_entry, read_source
from pipelines.reports.sections import store_section
from pipelines.store import CodeStore
from pipelines.training.image_dataset import SHARDS_TOGETHER, ImageCrops
from pipelines.training.tokenizer_data import in_groups, list_data
from tests.encode_run import EncodeRun

PNG = b"\x89PNG\r\n\x1a\n"


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_table(path: Path, images: list[bytes | None], /, group: int = 2, **columns: list) -> Path:
    """A table as data set hubs publish them: image = {bytes, path}."""
    names = columns.pop("path", [None] * len(images))
    image = [{"bytes": data, "path": name} for data, name in zip(images, names, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(image, kind), **columns})
    pq.write_table(table, path, row_group_size=group)
    return path


def read_all(path: Path, labels: str = "none") -> dict[str, bytes]:
    return {
        entry.key: read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
        for entry in list_input(path, labels).entries
    }


@pytest.fixture
def images(photographs: Path) -> dict[str, bytes]:
    """The bytes of ten photographs by their path in the folder."""
    files = sorted(path for path in photographs.rglob("*.*") if path.is_file())
    return {path.relative_to(photographs).as_posix(): path.read_bytes() for path in files}


# --- tar files


def test_keys_in_a_tar_file_are_its_member_names(tmp_path: Path) -> None:
    long = "d" * 150 + "/long.png"  # needs a second header
    members = {
        "./b/2.JPG": b"two",
        "1.png": b"one",
        long: b"long",
        "1.json": b"{}",
        "._1.png": b"hidden",
        "é.webp": b"e",
    }
    tar = write_tar(tmp_path / "a.tar", members)
    expected = {"b/2.JPG": b"two", "1.png": b"one", long: b"long", "é.webp": b"e"}
    assert read_all(tar) == expected
    (tmp_path / "in" / "deep").mkdir(parents=True)
    tar.rename(tmp_path / "in" / "deep" / "a.tar")
    (tmp_path / "in" / "x.png").write_bytes(PNG)
    found = read_all(tmp_path / "in")
    inside = {f"deep/a.tar/{name}": data for name, data in expected.items()}
    assert found == {**inside, "x.png": PNG}
    labels = {e.key: e.label_name for e in list_input(tmp_path / "in", "last").entries}
    assert labels["deep/a.tar/b/2.JPG"] == "deep/b"
    assert labels["deep/a.tar/1.png"] == "deep"
    assert labels["x.png"] is None


def test_fields_of_a_webdataset_sample_other_than_the_image_are_skipped(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "shard-000.tar",
        {
            "s/001.cls": b"7", "s/001.jpg": b"a", "s/001.seg.png": b"labels",
            "s/002.depth.png": b"d", "s/002.jpg": b"b",
            "photo.v2.jpg": b"one of two names",
        },
    )  # fmt: skip
    expected = {"s/001.jpg": b"a", "s/002.jpg": b"b", "photo.v2.jpg": b"one of two names"}
    assert read_all(tar) == expected


@pytest.mark.parametrize("kind", ["truncated", "compressed", "broken header", "no tar at all"])
def test_members_before_a_defect_are_kept(tmp_path: Path, kind: str) -> None:
    members = {f"{number}.png": bytes([number]) * 700 for number in range(6)}
    tar = write_tar(tmp_path / "a.tar", members, "w:gz" if kind == "compressed" else "w")
    data = tar.read_bytes()
    if kind == "truncated":
        tar.write_bytes(data[:4000])
    if kind == "broken header":
        tar.write_bytes(data[:3072] + b"?" * 512 + data[3584:])
    if kind == "no tar at all":
        tar.write_bytes(b"words " * 1000)
    (tmp_path / "x.png").write_bytes(PNG)
    listing = list_input(tmp_path)
    kept = 2 if kind in ("truncated", "broken header") else 0
    keys = [entry.key for entry in listing.entries]
    assert keys[:kept] == [f"a.tar/{number}.png" for number in range(kept)]
    assert keys[-1] == "x.png"
    assert len(keys) <= kept + 2
    assert listing.unread == ["a.tar"]
    assert "cannot be read to its end" in listing.skipped[0][1]


def test_archive_without_images_as_input_is_an_error_with_the_reason(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.png": b"one"}, "w:gz")
    with pytest.raises(InputError, match="compressed with gzip, which is not read"):
        list_input(tar)
    with pytest.raises(InputError, match="holds no images"):
        list_input(write_tar(tmp_path / "b.tar", {"1.txt": b"one"}))
    with pytest.raises(InputError, match="does not exist"):
        list_input(tmp_path / "c.tar")


def test_training_names_archives_that_are_not_read_to_their_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {f"{number}.png": PNG for number in range(9)})
    tar.write_bytes(tar.read_bytes()[:5000])
    data = list_data(tmp_path, None, 0)
    assert len(data.learned) == 5
    ((key, reason),) = data.lost
    assert key == "a.tar"
    assert "cannot be read to its end" in reason


def test_replaced_archive_is_detected_on_reading(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.png": b"one", "2.png": b"two"})
    entry = list_input(tar).entries[1]
    assert read_bytes(entry.uri, entry.offset, entry.size, entry.etag) == b"two"
    assert read_source(entry.uri) == b"two"
    write_tar(tar, {"1.png": b"one", "3.png": b"six"})
    with pytest.raises(ImageError) as caught:
        read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
    assert caught.value.reason == "changed"
    tar.write_bytes(b"?" * 4096)
    with pytest.raises(ImageError, match="no longer has an image at 1536"):
        read_source(entry.uri)
    tar.unlink()
    with pytest.raises(ImageError) as caught:
        read_source(entry.uri)
    assert caught.value.reason == "missing"


# --- tables


def test_keys_in_a_table_are_its_name_column_or_row_numbers(tmp_path: Path) -> None:
    data = [bytes([number]) * 9 for number in range(5)]
    names = [f"n0{number}/{number}.JPEG" for number in range(5)]
    by_name = write_table(tmp_path / "a.parquet", data, path=names)
    assert read_all(by_name) == dict(zip(names, data, strict=True))
    assert list_input(by_name, "first").entries[2].label_name == "n02"
    by_key = write_table(tmp_path / "b.parquet", data, __key__=list("edcba"))
    assert read_all(by_key) == dict(zip("edcba", data, strict=True))
    for unnamed in (
        write_table(tmp_path / "c.parquet", data),
        write_table(tmp_path / "d.parquet", data, path=["same.jpg"] * 5),
    ):
        assert read_all(unnamed) == {f"{row:08d}": datum for row, datum in enumerate(data)}
    plain = tmp_path / "e.parquet"
    pq.write_table(pa.table({"mask": data, "jpg": data[::-1], "key": list("abcde")}), plain)
    assert read_all(plain) == dict(zip("abcde", data[::-1], strict=True))


@pytest.mark.parametrize(
    ("name", "values", "classes"),
    [
        ("label", pa.array([3, None, 0], pa.int64()), ["3", None, "0"]),
        ("label", pa.array([3, 4, 0], pa.uint8()), ["3", "4", "0"]),
        ("Class", pa.array(["cat", "", "two\nlines"]), ["cat", None, None]),
        ("cls", pa.array(["cat", "dog", "cat"]).dictionary_encode(), ["cat", "dog", "cat"]),
        ("cls", pa.array([b"cat", b"", b"x" * 201]), ["cat", None, None]),
        ("label", pa.array([0.5, 1, 2]), [None] * 3),
        ("label", pa.array([[1], [2], [3]]), [None] * 3),
    ],
)
def test_classes_are_read_from_a_tables_column_on_request(
    tmp_path: Path, name: str, values: pa.Array, classes: list[str | None]
) -> None:
    named: dict[str, list[str] | pa.Array] = {"path": ["1", "2", "3"], name: values}
    table = write_table(tmp_path / "a.parquet", [b"1", b"2", b"3"], **named)
    listing = list_input(table, "field")
    assert [entry.label_name for entry in listing.entries] == classes
    assert not listing.unused
    listing = list_input(table, "first")
    assert [entry.label_name for entry in listing.entries] == [None] * 3
    note = ("a.parquet", f"column '{name}' holds classes that --labels field reads")
    assert listing.unused == ([note] if any(classes) else [])


def test_row_without_bytes_is_an_empty_image(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.parquet", [b"one", None, b""])
    entries = list_input(table).entries
    assert read_bytes(entries[0].uri, 0, 0) == b"one"
    for entry in entries[1:]:
        with pytest.raises(ImageError) as caught:
            read_bytes(entry.uri, entry.offset, entry.size, entry.etag)
        assert caught.value.reason == "empty"


def test_tables_without_images_are_skipped_and_corrupt_ones_are_unread(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "captions.parquet")
    pq.write_table(pa.table({"one": [b"a"], "two": [b"b"]}), tmp_path / "two.parquet")
    whole = write_table(tmp_path / "whole.parquet", [b"a"] * 100).read_bytes()
    (tmp_path / "broken.parquet").write_bytes(whole[:-50])
    (tmp_path / "whole.parquet").unlink()
    listing = list_input(tmp_path)
    assert [entry.key for entry in listing.entries] == ["x.png"]
    skipped = dict(listing.skipped)
    assert "no column of bytes" in skipped["captions.parquet"]
    assert "several columns of bytes (one, two)" in skipped["two.parquet"]
    assert "not a whole Parquet file" in skipped["broken.parquet"]
    assert listing.unread == ["broken.parquet"]  # the other two are read and have no images


# --- through the commands


def test_codes_from_a_folder_a_tar_file_and_a_table_are_equal(
    run: EncodeRun, photographs: Path, images: dict[str, bytes], tmp_path: Path
) -> None:
    inputs = {
        "folder": photographs,
        "tar": write_tar(tmp_path / "a.tar", images),
        "table": write_table(tmp_path / "a.parquet", list(images.values()), path=list(images)),
    }
    stores = {}
    for name, path in inputs.items():
        store = tmp_path / f"{name}.zarr"
        assert run(path, out=store, labels="first") == 0
        stores[name] = CodeStore.open(store)
    for place in range(len(images)):
        rows = [store[place] for store in stores.values()]
        assert len({row["key"] for row in rows}) == len({row["label"] for row in rows}) == 1
        assert all(np.array_equal(row["codes"], rows[0]["codes"]) for row in rows)
    for name in ("tar", "table"):  # the report reads each original from its archive
        section = store_section(tmp_path / f"{name}.zarr")
        captions = [figure.caption for figure in section.figures if " codes" in figure.caption]
        assert sum("dB" in caption for caption in captions) == len(images)
        assert ("images", "10") in section.tables[0].rows


def test_training_on_a_folder_and_on_a_tar_file_has_equal_losses(
    photographs: Path, images: dict[str, bytes], tmp_path: Path
) -> None:
    flags = [
        "--steps", "3", "--log-every", "1", "--batch-size", "2", "--crop-size", "32",
        "--adversarial", "none", "--threads", "1", "--held-out", "0", "--num-workers", "0",
    ]  # fmt: skip
    losses = []
    table = write_table(tmp_path / "a.parquet", list(images.values()), path=list(images))
    for data in (photographs, write_tar(tmp_path / "a.tar", images), table):
        out = tmp_path / f"run-{data.name}"
        assert train_tokenizer.main(["tiny", "--data", str(data), "--out", str(out), *flags]) == 0
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1]
    assert len(losses[2]) == 3


def test_shuffle_of_tables_reads_few_row_groups_at_a_time(
    images: dict[str, bytes], tmp_path: Path
) -> None:
    data = [list(images.values())[number % 10] for number in range(60)]
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_table(tmp_path / "in" / f"{name}.parquet", data[:30], group=3)
    entries, sizes = in_groups(list_input(tmp_path / "in").entries)
    assert sizes == [3] * 20
    crops = ImageCrops(
        [(entry.key, read_entry(entry)) for entry in entries],
        batch_size=3 * SHARDS_TOGETHER, crop_size=8, scale_range=(8, 8), seed=0,
        shard_sizes=sizes,
    )  # fmt: skip
    groups = {}
    for entry in entries:
        path, row, _ = parse_address(entry.uri)
        groups[entry.key] = (path, group_of(path, row))
    seen: list[str] = []
    for step in range(5):
        keys = crops.keys(step)
        assert len({groups[key] for key in keys}) == SHARDS_TOGETHER
        seen += keys
    assert sorted(seen) == sorted(groups)
    assert in_groups(list_input(tmp_path / "in").entries[:0]) == ([], None)
