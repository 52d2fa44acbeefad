"""Plans: every image gets a row, later parts move none, and reading gives what was written."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import disk
from ops.disk import Disk
from pipelines.inputs.entries import ENTRY_SCHEMA
from pipelines.inputs.reading import Entry
from pipelines.planning import plan as plan_module
from pipelines.planning.plan import Plan, PlanSettings, extend_plan, read_plan, task_table
from pipelines.store import StoreError
from tests.conftest import made_up_provenance

SETTINGS = PlanSettings(rows_per_task=4, track={**made_up_provenance(), "crop": "ten"})


def entry(key: str, etag: str = "1") -> Entry:
    folder = key.partition("/")[0] if "/" in key else None
    return Entry(key, f"/in/{key}", None, 10, etag, folder)


def entries(*keys: str, etag: str = "1") -> list[Entry]:
    return [entry(key, etag) for key in keys]


def table(listed: list[Entry]) -> pa.Table:
    return pa.Table.from_pylist([asdict(entry) for entry in listed], ENTRY_SCHEMA)


def grids_of(listing: pa.Table) -> pa.Array:
    return pa.array(["2x2" if "w" in key else "4x4" for key in listing["key"].to_pylist()])


def extend(root: Path, listed: list[Entry], views: int = 1) -> Plan:
    return extend_plan(root, table(listed), SETTINGS, views, grids_of)


def all_rows(root: Path) -> list[dict]:
    plan = read_plan(root)
    return [row for task in plan.tasks for row in task_table(root, task).to_pylist()]


def test_rows_follow_the_listing_and_tasks_own_fixed_ranges(tmp_path: Path) -> None:
    plan = extend(tmp_path, entries(*"abcdefghij"))
    assert [(t.grid, t.number, t.num_rows) for t in plan.tasks] == [
        ("4x4", 0, 4),
        ("4x4", 1, 4),
        ("4x4", 2, 2),
    ]
    assert [(row["key"], row["row"]) for row in all_rows(tmp_path)] == list(
        zip("abcdefghij", range(10), strict=True)
    )
    assert plan.grids == {"4x4": 10}
    assert plan == read_plan(tmp_path)
    assert plan.settings == SETTINGS


def test_each_grid_numbers_its_own_rows(tmp_path: Path) -> None:
    plan = extend(tmp_path, entries("a", "aw", "b", "bw", "c"))
    assert plan.grids == {"2x2": 2, "4x4": 3}
    rows = [(row["grid"], row["row"], row["key"]) for row in all_rows(tmp_path)]
    assert rows == [
        ("2x2", 0, "aw"),
        ("2x2", 1, "bw"),
        *[("4x4", i, k) for i, k in enumerate("abc")],
    ]


def test_more_images_start_new_tasks_and_move_no_row(tmp_path: Path) -> None:
    extend(tmp_path, entries(*"bcdef"))
    before = all_rows(tmp_path)
    plan = extend(tmp_path, entries(*"abcdefg"))
    assert plan.num_parts == 2
    assert all_rows(tmp_path)[:5] == before
    assert [(row["key"], row["row"]) for row in all_rows(tmp_path)[5:]] == [("a", 8), ("g", 9)]
    assert plan.grids == {"4x4": 10}
    assert plan.num_rows == 7


def test_planning_the_same_again_writes_nothing(tmp_path: Path) -> None:
    plan = extend(tmp_path, entries(*"abc"))
    assert extend(tmp_path, entries(*"abc")) == plan
    assert extend(tmp_path, entries(*"ab")) == plan
    assert [path.name for path in (tmp_path / "_plan").iterdir()] == ["0.parquet"]


def test_changed_image_gets_a_new_row_that_names_the_row_it_replaces(tmp_path: Path) -> None:
    extend(tmp_path, entries("a", "b"), views=2)
    extend(tmp_path, [entry("a"), entry("b", "2")], views=2)
    extend(tmp_path, [entry("a"), entry("b", "3")], views=2)
    replaced = [(row["row"], row["view"], row["replaces"]) for row in all_rows(tmp_path)[4:]]
    assert replaced == [(4, 0, "4x4/2"), (5, 1, "4x4/3"), (8, 0, "4x4/4"), (9, 1, "4x4/5")]
    assert len(extend(tmp_path, [entry("b", "3")], views=2).tasks) == 3


def test_labels_keep_their_numbers_when_classes_are_added(tmp_path: Path) -> None:
    extend(tmp_path, entries("dog/1", "cat/1", "loose"))
    plan = extend(tmp_path, entries("ant/1", "cat/2", "dog/1", "cat/1", "loose"))
    assert plan.label_names == ("cat", "dog", "ant")
    labels = {row["key"]: row["label"] for row in all_rows(tmp_path)}
    assert labels == {"dog/1": 1, "cat/1": 0, "loose": None, "ant/1": 2, "cat/2": 0}


def test_views_of_an_image_are_consecutive_rows(tmp_path: Path) -> None:
    extend(tmp_path, entries("a", "b"), views=10)
    rows = [(row["key"], row["view"]) for row in all_rows(tmp_path)]
    assert rows == [(key, view) for key in "ab" for view in range(10)]


def test_plain_parquet_reads_the_plan(tmp_path: Path) -> None:
    extend(tmp_path, entries(*"abcdef"))
    assert pq.read_table(tmp_path / "_plan")["key"].to_pylist() == list("abcdef")


def test_corrupt_plan_is_an_error_with_its_path(tmp_path: Path) -> None:
    extend(tmp_path, entries("a"))
    (tmp_path / "_plan/0.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match=r"0\.parquet: corrupt plan"):
        read_plan(tmp_path)


def test_corrupt_row_group_is_an_error_with_its_path(tmp_path: Path) -> None:
    plan = extend(tmp_path, entries(*"abcdef"))
    path = tmp_path / "_plan/0.parquet"
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    for place in range(start + 40, start + 60):
        data[place] ^= 255
    path.write_bytes(data)
    assert [row["key"] for row in task_table(tmp_path, plan.tasks[0]).to_pylist()] == list("abcd")
    with pytest.raises(StoreError, match=r"0\.parquet: corrupt plan"):
        task_table(tmp_path, plan.tasks[1]).to_pylist()


def test_replaced_plan_is_not_read_from_the_cache(tmp_path: Path) -> None:
    for keys in ("abcd", "efgh"):
        plan = extend(tmp_path, entries(*keys))
        assert [row["key"] for row in task_table(tmp_path, plan.tasks[0]).to_pylist()] == list(keys)
        shutil.rmtree(tmp_path / "_plan")


class RetriedLink(Disk):
    """A network file system that loses the reply to a link request and sends it again."""

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        super().link(source, target)


class ConcurrentWriter(Disk):
    """Another process writes the file just before it is linked."""

    def link(self, source: Path, target: Path) -> None:
        target.write_bytes(b"another process's plan")
        super().link(source, target)


def test_link_that_was_made_counts_even_if_an_error_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "disk", RetriedLink())
    assert extend(tmp_path, entries(*"ab")).num_rows == 2


def test_plan_never_overwrites_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "disk", ConcurrentWriter())
    with pytest.raises(StoreError, match="written by another process"):
        extend(tmp_path, entries(*"ab"))
    left = {path.name: path.read_bytes() for path in (tmp_path / "_plan").iterdir()}
    assert left == {"0.parquet": b"another process's plan"}


def test_same_listing_gives_the_same_bytes_however_it_is_chunked(tmp_path: Path) -> None:
    listed = table(entries(*(f"{number:03d}" for number in range(50))))
    chunked = pa.concat_tables([listed.slice(first, 7) for first in range(0, 50, 7)])
    plans = []
    for name, listing in (("whole", listed), ("chunked", chunked)):
        extend_plan(tmp_path / name, listing, SETTINGS, 3, grids_of)
        plans.append((tmp_path / name / "_plan/0.parquet").read_bytes())
    assert plans[0] == plans[1]


@given(
    rounds=st.lists(st.sets(st.sampled_from("abcdefghijkl"), min_size=1), min_size=1, max_size=4)
)
def test_every_key_has_one_row_and_every_row_one_key(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[set[str]]
) -> None:
    root = tmp_path_factory.mktemp("plan")
    for keys in rounds:
        extend(root, entries(*sorted(keys)))
    rows = all_rows(root)
    assert sorted(row["key"] for row in rows) == sorted(set().union(*rounds))
    assert len({row["row"] for row in rows}) == len(rows)
    for task in read_plan(root).tasks:
        assert {row["row"] // 4 for row in task_table(root, task).to_pylist()} == {task.number}


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("parts_written", [0, 1, 2])
def test_large_plans_are_in_parts_and_a_killed_one_goes_on_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int, parts_written: int
) -> None:
    monkeypatch.setattr(plan_module, "PART_ROWS", 12)
    listed = [entry(f"{'w' * (n % 3)}{n:02d}") for n in range(40 // views)]
    listed.sort(key=lambda one: one.key)
    whole = extend(tmp_path / "whole", listed, views)
    assert whole.num_parts > 2
    assert whole.num_rows == len(listed) * views
    counts = [sum(t.num_rows for t in whole.tasks if t.part == n) for n in range(whole.num_parts)]
    assert max(counts) <= 12

    write_part = plan_module.write_part

    def killed(root: Path, part: int, *rest: object) -> None:
        if part == parts_written:
            raise KeyboardInterrupt
        write_part(root, part, *rest)

    monkeypatch.setattr(plan_module, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        extend(tmp_path / "killed", listed, views)
    monkeypatch.setattr(plan_module, "write_part", write_part)
    assert extend(tmp_path / "killed", listed, views) == whole
    for part in sorted((tmp_path / "whole/_plan").iterdir()):
        assert (tmp_path / "killed/_plan" / part.name).read_bytes() == part.read_bytes()
