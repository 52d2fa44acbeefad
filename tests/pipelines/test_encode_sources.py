"""Encoding from lists, patterns and tables with their columns: index, resume, changes, verify."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import encode, verify
from pipelines.planning import read_plan
from pipelines.planning.source_records import read_left_out
from pipelines.store import CARRIED_FIELDS, plan_path
from tests.encode_run import EncodeRun, everything
from tests.pipelines.inputs.test_archives import write_table, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(4):
        Image.new("RGB", (40 + 8 * number, 40), (60 * number, 9, 9)).save(
            tmp_path / f"in/{number}.png"
        )
    return tmp_path / "in"


def write_list(folder: Path, *labels: str, start: int = 0) -> Path:
    rows = [
        {"path": f"{n}.png", "kind": label, "caption": f"image {n}", "score": n / 2}
        for n, label in enumerate(labels, start)
    ]
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def indexed(run: EncodeRun) -> list[tuple]:
    store = run.store()
    lines = (store[position] for position in range(len(store)))
    return [
        (line["key"], store.label_names[line["label"]], line["caption"], line["carried"])
        for line in lines
    ]


def test_columns_of_a_list_are_in_the_index(run: EncodeRun, folder: Path) -> None:
    images = write_list(folder, "cat", "dog", "cat")
    assert run(images, label_column="kind") == 0
    assert indexed(run) == [
        ("0.png", "cat", "image 0", '{"score":0.0}'),
        ("1.png", "dog", "image 1", '{"score":0.5}'),
        ("2.png", "cat", "image 2", '{"score":1.0}'),
    ]
    before = everything(run.out)
    assert run(images, label_column="kind") == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == before
    # A class that the list corrects is a change of the image; a line that is added a new one.
    write_list(folder, "cat", "dog", "wolf", "cat")
    assert run(images, label_column="kind") == 0
    assert [line[1] for line in indexed(run)] == ["cat", "dog", "wolf", "cat"]
    write_list(folder, "dog", "wolf", "cat", start=1)
    assert run(images, label_column="kind", prune=True) == 0
    assert [line[0] for line in indexed(run)] == ["1.png", "2.png", "3.png"]
    assert verify.main([str(run.out)]) == 0
    assert run(images, label_column="score") == 2
    assert "--label-column score: no image has a class in it" in run.errors
    assert run(images, label_column="kind", labels="first") == 2
    assert "--label-column names a column" in run.errors


def test_what_is_left_out_is_counted_and_recorded(run: EncodeRun, folder: Path) -> None:
    images = write_list(folder, *"abcd")
    Image.open(folder / "0.png").save(folder / "1.png")
    asked = {"where": "score < 1.5", "max_aspect": 1.1, "skip_duplicates": True}
    assert run(images, **asked) == 0
    for line in (
        "left out: 1 by --where score < 1.5", "left out: 1 by --max-aspect 1.1",
        "left out: 1 by --skip-duplicates",
    ):  # fmt: skip
        assert line in run.printed.splitlines()
    assert run.store().index["key"].to_pylist() == ["0.png"]
    found = read_left_out(run.out).select(["key", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("1.png", "skip-duplicates"), ("2.png", "max-aspect"), ("3.png", "where"),
    ]  # fmt: skip
    before = everything(run.out)
    assert run(images, **asked) == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == before
    assert verify.main([str(run.out)]) == 0
    assert run(images, where="size > 3") == 2
    assert "no image has a column 'size'" in run.errors
    assert run(images) == 0
    assert len(run.store()) == 4


def test_images_with_the_same_bytes_are_named(run: EncodeRun, folder: Path) -> None:
    (folder / "4.png").write_bytes((folder / "1.png").read_bytes())
    assert run(folder) == 0
    assert "duplicate: '4.png': the same bytes as '1.png'" in run.printed.splitlines()
    store = run.store()
    content = dict(
        zip(store.index["key"].to_pylist(), store.index["content"].to_pylist(), strict=True)
    )
    assert content["1.png"] == content["4.png"] != content["2.png"]


def test_several_values_of_in(run: EncodeRun, folder: Path) -> None:
    data = {f"{n}.png": (folder / f"{n}.png").read_bytes() for n in range(4)}
    shards = [
        write_tar(folder.parent / f"s-{part}.tar", dict(list(data.items())[part::2]))
        for part in (0, 1)
    ]
    flags = run.flags(folder)[2:]
    assert encode.main(["--in", *map(str, shards), *flags]) == 0
    keys = run.store().index["key"].to_pylist()
    assert keys == ["s-0.tar/0.png", "s-0.tar/2.png", "s-1.tar/1.png", "s-1.tar/3.png"]
    before = everything(run.out)
    assert run(folder.parent / "s-{0..1}.tar") == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == before
    assert run(folder.parent / "s-{0..9}.tar") == 2
    assert run.errors.count("\n") == 1
    assert "8 of its 10 files do not exist" in run.errors


def test_tracks_of_a_list_follow_its_images(run: EncodeRun, folder: Path) -> None:
    images = write_list(folder, *"abcd")
    assert run(images, track="low_res=2") == 0
    track = run.store().track("low_res")
    assert len(track) == 4
    assert track.index["caption"].null_count == 4  # the images' own index has them
    assert verify.main([str(run.out)]) == 0


def test_stores_of_earlier_versions_are_read_and_extended(run: EncodeRun, folder: Path) -> None:
    table = write_table(folder / "a.parquet", [(folder / "3.png").read_bytes()], caption=["new"])
    (folder / "3.png").unlink()
    rest = table.rename(folder.parent / "a.parquet")
    assert run(folder) == 0
    for path in (plan_path(run.out, 0), *(run.out / "_index").glob("*/*.parquet")):
        old = pq.read_table(path).drop_columns([field.name for field in CARRIED_FIELDS])
        pq.write_table(old, path, row_group_size=4, write_page_checksum=True)
    (run.out / "_checksums.json").unlink()
    assert run.store().index["caption"].to_pylist() == [None] * 3
    rest.rename(table)
    assert run(folder) == 0
    assert sorted(run.store().index["caption"].to_pylist(), key=str) == [None] * 3 + ["new"]
    assert verify.main([str(run.out)]) == 0
    plan = read_plan(run.out)
    assert plan is not None
    assert plan.num_parts == 2
    assert run.store().index.schema.field("caption").type == pa.large_string()
