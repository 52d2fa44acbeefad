"""New and changed images: by etag or by content, once a key, and again after pruning."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.inputs.entries import Listing, ListingBuilder
from pipelines.inputs.listing import list_input
from pipelines.inputs.reading import Entry, content_hash, read_bytes
from pipelines.planning import diff
from pipelines.planning.diff import DUPLICATE
from pipelines.planning.plan import PlanSettings, extend_plan, prune_plan, read_plan, task_table
from pipelines.store import INDEX_SCHEMA, commit_task
from pipelines.store.commit import committed_tasks
from pipelines.store.layout import staging_path
from pipelines.store.tombstones import read_tombstones
from tests.conftest import made_up_provenance

SETTINGS = PlanSettings(rows_per_task=4, track=made_up_provenance())


class Images:
    """A folder of images, its plan, and an encoder that only hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder / "images", folder / "codes.zarr"
        self.folder.mkdir()
        staging_path(self.root).mkdir(parents=True)

    def write(self, name: str, content: str, time: int = 1) -> None:
        path = self.folder / name
        path.write_text(content)
        os.utime(path, (time, time))

    def list(self) -> pa.Table:
        return list_input(self.folder).table

    def plan(self, *, by_content: bool = True, views: int = 1) -> list[tuple[str, int, str | None]]:
        """Plan new and changed images; (key, row, replaces) of the new rows."""
        before = self.rows()
        extend_plan(self.root, self.list(), SETTINGS, views, one_grid, by_content=by_content)
        return [(r["key"], r["row"], r["replaces"]) for r in self.rows()[len(before) :]]

    def rows(self) -> list[dict]:
        plan = read_plan(self.root)
        tasks = plan.tasks if plan else ()
        return [row for task in tasks for row in task_table(self.root, task).to_pylist()]

    def encode(self, failing: tuple[str, ...] = ()) -> None:
        """Commit the remaining tasks as a worker would; failed images have no content hash."""
        committed = committed_tasks(self.root)
        for task in read_plan(self.root).tasks:
            if (task.grid, task.number) in committed:
                continue
            lines = [
                {
                    **{name: row[name] for name in ("key", "grid", "row", "view", "replaces")},
                    "source": row["uri"],
                    "status": "missing" if row["key"] in failing else "ok",
                    "content": content_of(row) if row["key"] not in failing else None,
                    "checksum": 0,
                }
                for row in task_table(self.root, task).to_pylist()
            ]
            codes = np.zeros((len(lines), 2, 2), "<u2")
            index = pa.Table.from_pylist(lines, INDEX_SCHEMA)
            commit_task(self.root, task.grid, task.number, 4, {"image": codes}, index)


def content_of(row: dict) -> str:
    return content_hash(read_bytes(row["uri"], row["offset"], row["size"]))


def one_grid(entries: pa.Table) -> pa.Array:
    return pa.repeat("2x2", len(entries))


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


# --- by content


def test_touched_image_with_the_same_content_has_not_changed(images: Images) -> None:
    images.write("a.png", "one")
    images.write("b.png", "two")
    images.plan()
    images.encode()
    images.write("a.png", "one", time=9)
    images.write("b.png", "2", time=9)
    assert images.plan() == [("b.png", 4, "2x2/1")]
    assert images.plan() == []
    assert images.plan(by_content=False) == [("a.png", 8, "2x2/0")]


def test_other_content_with_the_same_size_and_time_has_changed(images: Images) -> None:
    for name in ("a.png", "b.png"):
        images.write(name, "one")
    images.plan()
    images.encode()
    images.write("b.png", "two")
    assert images.plan(by_content=False) == []
    assert images.plan() == [("b.png", 4, "2x2/1")]
    assert images.plan() == []  # planned with this etag, if not encoded yet
    images.encode()
    assert images.plan() == []
    images.write("b.png", "one")
    assert images.plan() == [("b.png", 8, "2x2/4")]


def test_every_view_of_a_changed_image_is_replaced(images: Images) -> None:
    images.write("a.png", "one")
    images.write("b.png", "one")
    images.plan(views=2)
    images.encode()
    images.write("b.png", "two")
    assert images.plan(views=2) == [("b.png", 4, "2x2/2"), ("b.png", 5, "2x2/3")]


def test_etag_decides_if_no_content_is_known(images: Images) -> None:
    images.write("failed.png", "one")
    images.write("new.png", "one")
    images.plan()
    assert images.plan() == []
    images.encode(failing=("failed.png",))
    images.write("new.png", "one", time=9)
    assert images.plan() == []
    images.write("failed.png", "one", time=9)
    assert images.plan() == [("failed.png", 4, "2x2/0")]


def test_only_images_of_the_planned_size_are_hashed_and_unreadable_ones_go_by_etag(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone.png", "longer.png", "same.png"):
        images.write(name, "one")
    images.plan()
    images.encode()
    images.write("longer.png", "three")
    images.write("new.png", "four")
    listing = images.list()
    (images.folder / "gone.png").unlink()
    read: list[str] = []
    hash_of = diff._hash_of

    def recorded(uri: str, offset: int | None, size: int) -> str | None:
        read.append(Path(uri).name)
        return hash_of(uri, offset, size)

    monkeypatch.setattr(diff, "_hash_of", recorded)
    plan = extend_plan(images.root, listing, SETTINGS, 1, one_grid, by_content=True)
    assert sorted(read) == ["gone.png", "same.png"]
    assert [row["key"] for row in images.rows()[3:]] == ["longer.png", "new.png"]
    assert plan.num_rows == 5


# --- pruning


def test_removed_images_stay_until_they_are_pruned(images: Images) -> None:
    for name in ("a.png", "b.png", "c.png"):
        images.write(name, "one")
    images.plan(views=2)
    images.write("b.png", "other")
    images.plan(views=2)
    (images.folder / "b.png").unlink()
    assert images.plan(views=2) == []
    assert not len(read_tombstones(images.root))
    assert prune_plan(images.root, images.list()) == 1
    marked = [("b.png", "2x2", row) for row in (2, 3, 8, 9)]
    assert [tuple(line.values()) for line in read_tombstones(images.root).to_pylist()] == marked
    assert prune_plan(images.root, images.list()) == 0
    assert len(read_tombstones(images.root)) == 4


@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize("content", ["one", "other"])
def test_pruned_image_listed_again_is_new(images: Images, by_content: bool, content: str) -> None:
    images.write("a.png", "one")
    images.write("b.png", "one")
    images.plan()
    images.encode()
    (images.folder / "b.png").unlink()
    prune_plan(images.root, images.list())
    images.write("b.png", content)
    assert images.plan(by_content=by_content) == [("b.png", 4, None)]
    assert images.plan(by_content=by_content) == []
    images.encode()
    images.write("b.png", "a third one", time=9)
    assert images.plan(by_content=by_content) == [("b.png", 8, "2x2/4")]
    (images.folder / "b.png").unlink()
    assert prune_plan(images.root, images.list()) == 1
    assert sorted(read_tombstones(images.root)["row"].to_pylist()) == [1, 4, 8]


def test_nothing_to_prune_without_a_plan(images: Images) -> None:
    images.write("a.png", "one")
    assert prune_plan(images.root, images.list()) == 0
    assert not (images.root / "_tombstones").exists()


# --- one key, many images


@pytest.fixture
def archives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of folders of text archives, in which a key may occur more than once.

    Each line "KEY CONTENT" of a file is an image.
    """

    def list_archives(path: Path) -> Listing:
        builder = ListingBuilder()
        for archive in path.iterdir():
            offset = 0
            for line in archive.read_text().splitlines(keepends=True):
                key, content = line.split()
                builder.add(Entry(key, str(archive), offset, len(line), content, None))
                offset += len(line)
        return builder.listing()

    monkeypatch.setitem(globals(), "list_input", list_archives)


@pytest.mark.usefixtures("archives")
def test_only_the_first_image_of_a_key_is_encoded_and_the_others_are_planned_once(
    images: Images,
) -> None:
    images.write("1.tar", "a red\nb red\nb blue\n")
    images.write("2.tar", "b red\nc red\n")
    images.plan(by_content=False, views=2)
    rows = [(r["key"], r["view"], r["offset"], r["etag"]) for r in images.rows()]
    assert rows == [
        (key, view, offset, etag)
        for key, offset, etag in [
            ("a", 0, "red"),
            ("b", 6, "red"),
            ("b", 12, DUPLICATE),
            ("b", 0, DUPLICATE),
            ("c", 6, "red"),
        ]
        for view in range(2)
    ]
    assert {row["replaces"] for row in images.rows()} == {None}
    images.encode()
    for by_content in (False, True):
        assert images.plan(by_content=by_content, views=2) == []
    images.write("3.tar", "d red\nb red\n")
    assert images.plan(by_content=False, views=2) == [
        ("b", 12, None),
        ("b", 13, None),
        ("d", 14, None),
        ("d", 15, None),
    ]


@pytest.mark.usefixtures("archives")
def test_duplicate_replaces_the_first_image_of_its_key_when_that_is_removed(images: Images) -> None:
    images.write("1.tar", "a red\nb red\n")
    images.write("2.tar", "b blue\n")
    images.plan(by_content=False)
    images.write("1.tar", "a red\n")
    assert images.plan(by_content=False) == [("b", 4, "2x2/1")]
    assert images.plan(by_content=False) == []
    images.write("2.tar", "c red\n")
    assert images.plan(by_content=False) == [("c", 8, None)]
    assert prune_plan(images.root, images.list()) == 1
    assert sorted(read_tombstones(images.root)["row"].to_pylist()) == [1, 2, 4]
    images.write("2.tar", "b blue\nb red\n")
    assert images.plan(by_content=False) == [("b", 12, None), ("b", 13, None)]
