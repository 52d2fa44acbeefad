"""Selection of what is planned: by columns, by headers, by bytes; what is left out is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from ops.config import ConfigError
from pipelines.inputs import list_input
from pipelines.planning import duplicates, selection
from pipelines.planning.expressions import parse_condition
from pipelines.planning.plan import PlanSettings, extend_plan, read_plan, task_table
from pipelines.planning.selection import Selection, Selector
from pipelines.planning.source_records import left_out_path, read_left_out
from pipelines.store import StoreError
from tests.conftest import made_up_provenance
from tests.pipelines.inputs.test_archives import write_table, write_tar

SETTINGS = PlanSettings(rows_per_task=4, track=made_up_provenance())


def one_grid(entries: pa.Table) -> pa.Array:
    return pa.repeat("2x2", len(entries))


class Planned:
    """A folder of images and the plan of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder / "in", folder / "codes.zarr"
        self.folder.mkdir()
        self.root.mkdir()
        self.lines: list[str] = []

    def image(self, name: str, width: int, height: int) -> None:
        Image.new("RGB", (width, height)).save(self.folder / name)

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def plan(self, *inputs: Path, **asked: Any) -> list[str]:
        """The keys of all planned rows that have an image."""
        selector = Selector(self.root, Selection(**asked))
        table = list_input(inputs or self.folder).table
        extend_plan(self.root, table, SETTINGS, 1, one_grid, select=selector.select)
        self.lines = selector.lines()
        plan = read_plan(self.root)
        assert plan is not None
        rows = [row for task in plan.tasks for row in task_table(self.root, task).to_pylist()]
        return [row["key"] for row in rows if row["etag"] != "duplicate"]

    def left_out(self) -> list[tuple[str, str, str | None]]:
        rows = read_left_out(self.root).to_pylist()
        return [(row["key"], row["reason"], row["same_as"]) for row in rows]


@pytest.fixture
def images(tmp_path: Path) -> Planned:
    return Planned(tmp_path)


def test_images_are_left_out_by_their_headers(
    images: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.image("big.png", 80, 60)
    images.image("small.png", 100, 59)
    images.image("wide.png", 181, 60)
    images.write("broken.png", b"no image")
    asked = {"min_size": 60, "max_aspect": 3.0}
    assert images.plan(**asked) == ["big.png", "broken.png"]  # whose row will name the error
    left = [("small.png", "min-size", None), ("wide.png", "max-aspect", None)]
    assert images.left_out() == left
    assert images.lines == ["left out: 1 by --max-aspect 3.0", "left out: 1 by --min-size 60"]
    with monkeypatch.context() as patch:  # again: no header is read
        patch.setattr(selection, "size_in_header", None)
        assert images.plan(**asked) == ["big.png", "broken.png"]
    assert images.left_out() == left
    images.image("small.png", 60, 60)
    assert images.plan(**asked) == ["big.png", "broken.png", "small.png"]
    # Without the flags they are planned; what the store has stays there.
    assert sorted(images.plan()) == ["big.png", "broken.png", "small.png", "wide.png"]
    assert not left_out_path(images.root).exists()
    assert len(images.plan(min_size=1000)) == 4


def test_images_are_left_out_by_their_columns(images: Planned) -> None:
    lines = [("1", 5, "a cat"), ("2", 2.5, None), ("3", None, "a dog")]
    for name, _, _ in lines:
        images.image(f"{name}.png", 8, 8)
    rows = [{"path": f"{n}.png", "score": s, "caption": c} for n, s, c in lines]
    listed = images.folder / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def select(where: str) -> list[str]:
        from pipelines.inputs import Fields, parse_carry

        table = list_input(listed, "none", Fields(carry=parse_carry("all"))).table
        selector = Selector(images.root, Selection(where=parse_condition(where)))
        return selector.select(table, table)["key"].to_pylist()

    assert select("score > 3") == ["1.png"]
    assert select("not score > 3") == ["2.png"]
    assert select("score is null or 'cat' in caption") == ["1.png", "3.png"]
    assert select("key != '1.png' and label is null") == ["2.png", "3.png"]
    assert images.left_out() == [("1.png", "where", None)]
    with pytest.raises(ConfigError, match="There are: caption, key, label, score"):
        select("size > 3")
    with pytest.raises(ConfigError, match="score is a number, and 'x' a text"):
        select("score == 'x'")
    listed.write_text(listed.read_text() + '{"path": "4.png", "score": "high"}\n')
    with pytest.raises(ConfigError, match="'score' has values of several kinds"):
        select("score > 3")


def test_all_left_out_is_an_error(images: Planned) -> None:
    images.image("1.png", 8, 8)
    with pytest.raises(StoreError, match="every image was left out"):
        images.plan(min_size=9)


def test_of_equal_images_the_first_is_planned(
    images: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = bytes(range(256)) * 40
    images.write("b.png", long)
    images.write("c.png", long)
    images.write("d.png", b"!" + long[1:])  # of the same size and end
    images.write("e.png", b"")
    images.write("f.png", b"")
    images.write("g.png", b"another")
    assert images.plan(skip_duplicates=True) == ["b.png", "d.png", "e.png", "g.png"]
    left = [("c.png", "skip-duplicates", "b.png"), ("f.png", "skip-duplicates", "e.png")]
    assert images.left_out() == left
    assert images.lines == ["left out: 2 by --skip-duplicates"]
    # A later image may come first by name: what is planned stays the one that is encoded.
    images.write("a.png", long)
    with monkeypatch.context() as patch:
        read: list[str] = []
        real = duplicates.read_bytes
        patch.setattr(duplicates, "read_bytes", lambda uri, *a: read.append(uri) or real(uri, *a))
        assert images.plan(skip_duplicates=True) == ["b.png", "d.png", "e.png", "g.png"]
        assert not any(uri.endswith(("c.png", "f.png", "g.png")) for uri in read)
    assert images.left_out() == [("a.png", "skip-duplicates", "b.png"), *left]
    # The first is gone: its copies are not known any more, and one of them is planned.
    (images.folder / "b.png").unlink()
    planned = ["b.png", "d.png", "e.png", "g.png", "a.png"]
    assert images.plan(skip_duplicates=True) == planned
    assert images.left_out()[:1] == [("c.png", "skip-duplicates", "a.png")]
    assert sorted(images.plan()) == sorted([*planned, "c.png", "f.png"])


def test_equal_images_are_found_across_files_tars_and_tables(images: Planned) -> None:
    data = [bytes([number]) * 5000 for number in range(4)]
    images.write("1.png", data[0])
    write_tar(images.folder / "2.tar", {"x.png": data[0], "y.png": data[1], "z.png": data[1]})
    write_table(images.folder / "3.parquet", [data[1], data[2], data[2], None, data[3]])
    assert images.plan(skip_duplicates=True) == [
        "1.png", "2.tar/y.png", "3.parquet/00000001", "3.parquet/00000003", "3.parquet/00000004",
    ]  # fmt: skip


def test_an_image_of_a_repeated_key_is_no_first(images: Planned) -> None:
    (images.folder / "x").mkdir()
    rows = "".join(json.dumps({"path": "1.png"}) + "\n" for _ in range(2))
    images.write("list.jsonl", rows.encode())
    images.write("1.png", b"one")
    assert images.plan(images.folder / "list.jsonl", skip_duplicates=True) == ["1.png"]
    assert images.left_out() == []


def test_a_corrupt_record_is_made_anew(images: Planned) -> None:
    images.image("big.png", 80, 60)
    images.image("small.png", 8, 8)
    assert images.plan(min_size=60) == ["big.png"]
    before = left_out_path(images.root).read_bytes()
    for data in (b"", b"PAR1", before[:-20], before.replace(b"min-size", b"min-sizf")):
        left_out_path(images.root).write_bytes(data)
        assert images.plan(min_size=60) == ["big.png"]
        assert left_out_path(images.root).read_bytes() == before
