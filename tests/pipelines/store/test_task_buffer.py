"""TaskBuffer: rows that are put, missing, counted, kept and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.store.layout import staging_path
from pipelines.store.task_buffer import IndexLine, TaskBuffer, index_buffer
from pipelines.store.zarr_metadata import RowForm

GOOD = IndexLine(64, 48, "ok", None, "0a")
BAD = IndexLine(None, None, "broken", "no image", "0b")
CODES = np.arange(6, dtype="<u2").reshape(2, 3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    staging_path(tmp_path).mkdir()
    return tmp_path


def new_buffer(root: Path, num_rows: int = 4) -> TaskBuffer[IndexLine]:
    return index_buffer(root, "2x3", 7, num_rows, RowForm((2, 3), np.dtype("<u2")))


def test_rows_are_missing_until_they_are_put(root: Path) -> None:
    buffer = new_buffer(root)
    buffer.put(1, GOOD, CODES)
    buffer.put(3, BAD)
    assert buffer.missing(0, 4) == [0, 2]
    assert buffer.count(0, 4) == (buffer.num_put, buffer.num_failed) == (2, 1)
    assert buffer.count(0, 2) == (1, 0)
    assert (buffer.codes[[0, 2, 3]] == 65535).all()
    buffer.put(3, GOOD, CODES)
    assert (buffer.num_put, buffer.num_failed) == (2, 0)


def test_kept_rows_are_read_by_the_next_attempt(root: Path) -> None:
    buffer = new_buffer(root)
    buffer.put(1, GOOD, CODES)
    buffer.put(2, BAD)
    buffer.keep(1, 4)  # place 3 is not put
    buffer.quarantine(0, BAD)
    again = new_buffer(root)
    again.read_kept()
    assert again.lines == [BAD, GOOD, BAD, None]
    assert again.begun == {}
    np.testing.assert_array_equal(again.codes, buffer.codes)


def test_first_rows_of_a_canvas_are_kept_until_the_whole_is(root: Path) -> None:
    begun = CODES.copy()
    begun[1] = 65535
    new_buffer(root).keep_begun(2, begun)
    again = new_buffer(root)
    again.read_kept()
    assert again.missing(0, 4) == [0, 1, 2, 3]
    np.testing.assert_array_equal(again.begun[2], begun)
    again.put(2, GOOD, CODES)
    again.keep(2, 3)
    third = new_buffer(root)
    third.read_kept()
    assert (third.missing(0, 4), third.begun) == ([0, 1, 3], {})


def test_kept_rows_past_the_end_of_a_task_are_ignored(root: Path) -> None:
    buffer = new_buffer(root)
    for place in range(4):
        buffer.put(place, GOOD, CODES)
    buffer.keep(0, 4)
    shorter = new_buffer(root, num_rows=2)
    shorter.read_kept()
    assert shorter.lines == [GOOD, GOOD]
