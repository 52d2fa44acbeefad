import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.windows import (
    NO_CELL,
    Grid,
    Wavefront,
    Window,
    check_stride,
    raster,
    staggered_rows,
    tiles,
    window_of,
    window_start,
)

sizes = st.integers(1, 40)


@st.composite
def placements(draw):
    rows, columns, window = draw(sizes), draw(sizes), draw(st.integers(1, 17))
    stride = draw(st.integers(1, window - window // 2))
    cell = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    return *cell, rows, columns, window, stride


def test_stride_1_centres_the_window_as_in_the_paper():
    for size in (16, 17, 42, 64):
        for place in range(size):
            assert window_start(place, size, 16) == min(max(place - 8, 0), size - 16)


def test_stride_8_starts_at_multiples_of_8_and_at_the_end():
    assert [window_start(place, 42, 16, 8) for place in range(42)] == (
        [0] * 16 + [8] * 8 + [16] * 8 + [24] * 8 + [26] * 2
    )


@given(placements())
def test_a_window_contains_its_cell_and_stays_on_the_grid(placement):
    row, column, rows, columns, size, _ = placement
    window = window_of(*placement)
    assert 0 <= window.row <= row < window.row + window.rows <= rows
    assert 0 <= window.column <= column < window.column + window.columns <= columns
    assert (window.rows, window.columns) == (min(size, rows), min(size, columns))


@given(placements())
def test_cells_that_precede_a_cell_in_its_window_precede_it_in_raster_order(placement):
    row, column, rows, columns, _, _ = placement
    window = window_of(*placement)
    order = np.arange(rows * columns).reshape(rows, columns)
    here = window.offset_of(row, column)
    inside = order[window.slices()].ravel()
    assert inside[here] == order[row, column]
    assert (inside[:here] < order[row, column]).all()


@given(placements())
def test_half_a_window_precedes_a_cell_except_at_the_border(placement):
    row, column, _, _, size, _ = placement
    window = window_of(*placement)
    assert row - window.row >= min(row, size // 2)
    assert column - window.column >= min(column, size // 2)


@given(rows=sizes, columns=sizes)
def test_raster_visits_every_cell_in_order(rows, columns):
    assert list(raster(rows, columns)) == list(np.ndindex(rows, columns))


@st.composite
def wavefronts(draw):
    window = draw(st.integers(1, 9))
    stride = draw(st.integers(1, window - window // 2))
    rows, columns = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    known = random.random((rows, columns)) < draw(st.sampled_from([0, 0.3, 0.9, 1]))
    return Grid(rows, columns, window, stride), draw(st.integers(1, 6)), known


@given(wavefronts())
def test_wavefront_visits_each_cell_once_after_the_cells_that_precede_it_in_its_window(wavefront):
    grid, parallel_rows, known = wavefront
    done = known.copy()
    for cells in Wavefront(grid, parallel_rows, known.tolist()):
        assert 1 <= len(cells) <= parallel_rows
        assert cells == sorted(cells)
        for cell in cells:
            assert not done[cell]
            window = grid.window_of(*cell)
            assert done[window.slices()].ravel()[: window.offset_of(*cell)].all()
        for cell in cells:  # after the checks: the cells of a list are independent
            done[cell] = True
    assert done.all()


def test_a_flushed_row_starts_when_all_rows_above_are_done():
    done = set()
    for cells in Wavefront(Grid(11, 9, 4, 2), 3, flush_every_rows=4):
        for row, _ in cells:
            assert done >= {(r, c) for r in range(row // 4 * 4) for c in range(9)}
        done |= set(cells)
    assert len(done) == 99


def test_one_parallel_row_is_raster_order():
    cells = [cell for (cell,) in Wavefront(Grid(5, 7, 4, 2), 1)]
    assert cells == list(raster(5, 7))


@pytest.mark.parametrize(
    ("rows", "columns", "steps"), [(64, 64, 1072), (42, 64, 720), (16, 16, 256), (9, 30, 158)]
)
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_number_of_dependent_steps(rows, columns, steps, stride):
    # A row starts when 16 cells of the one above are done: 16 * (rows - 1) + columns.
    assert len(list(Wavefront(Grid(rows, columns, 16, stride), 99))) == steps


def test_cells_until_counts_the_cells_before_a_row_enters_a_window():
    wavefront = Wavefront(Grid(8, 12, 4, 2), 2)
    for cells in wavefront:
        if cells == [(0, 8), (1, 4)]:
            assert wavefront.cells_until(Window(0, 6, 4, 4)) == 0  # row 0 is in it
            assert wavefront.cells_until(Window(0, 2, 4, 4)) == 0  # row 1 is in it
            assert wavefront.cells_until(Window(0, 4, 4, 4)) == 2  # row 1 reaches it in two cells
            assert wavefront.cells_until(Window(0, 8, 4, 4)) == 2
            assert wavefront.cells_until(Window(0, 0, 4, 4)) == 12  # rows 2 and 3 have not started
            assert wavefront.cells_until(Window(2, 0, 4, 4)) is None  # no row will
        if cells == [(2, 8), (3, 4)]:
            assert wavefront.cells_until(Window(0, 0, 4, 4)) is None  # all its rows are done


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_leaves_cells_outside_their_window_is_refused(stride):
    with pytest.raises(ConfigError, match="from 1 to 8"):
        check_stride(stride, 16)


def test_a_window_of_one_cell_accepts_stride_1():
    check_stride(1, 1)


@given(rows=sizes, columns=sizes, tile=st.integers(1, 20), halo=st.integers(0, 12))
def test_tiles_partition_the_grid_and_have_their_halo(rows, columns, tile, halo):
    times = np.zeros((rows, columns), int)
    grid = np.arange(rows * columns).reshape(rows, columns)
    for part in tiles(rows, columns, tile, halo):
        times[part.inner.slices()] += 1
        outer = grid[part.outer.slices()]
        np.testing.assert_array_equal(
            outer[part.inner_in_outer().slices()], grid[part.inner.slices()]
        )
        reach = grid[
            max(0, part.inner.row - halo) : part.inner.row + part.inner.rows + halo,
            max(0, part.inner.column - halo) : part.inner.column + part.inner.columns + halo,
        ]
        np.testing.assert_array_equal(outer, reach)
    assert (times == 1).all()


def test_tiles_of_a_small_grid():
    first, second = tiles(4, 10, 8, 2)
    assert first.inner == Window(0, 0, 4, 8)
    assert first.outer == Window(0, 0, 4, 10)
    assert second.inner == Window(0, 8, 4, 2)
    assert second.outer == Window(0, 6, 4, 4)
    assert second.inner_in_outer() == Window(0, 2, 4, 2)


@pytest.mark.parametrize(("tile", "halo"), [(0, 1), (4, -1)])
def test_tiles_without_cells_are_refused(tile, halo):
    with pytest.raises(ConfigError, match="tile"):
        next(tiles(4, 4, tile, halo))


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), lag=st.integers(1, 9),
    parallel_rows=st.integers(1, 5),
)  # fmt: skip
def test_staggered_rows_visit_each_cell_once_with_each_row_behind_the_one_above(
    rows: int, columns: int, lag: int, parallel_rows: int
) -> None:
    lag = min(lag, columns)
    step_of = {}
    for step, cells in enumerate(staggered_rows(rows, columns, lag, parallel_rows)):
        assert len(cells) == parallel_rows
        for slot, (row, column) in enumerate(cells):
            if (row, column) != NO_CELL:
                assert row % parallel_rows == slot
                assert (row, column) not in step_of
                step_of[row, column] = step
    assert len(step_of) == rows * columns
    for (row, column), step in step_of.items():
        if column:
            assert step == step_of[row, column - 1] + 1
        if row:
            assert step_of[row - 1, min(column + lag, columns - 1)] <= step
        if row >= parallel_rows:  # its entry of the list was free
            assert step_of[row - parallel_rows, columns - 1] < step_of[row, 0]


def test_staggered_rows_take_the_fewest_possible_steps() -> None:
    assert len(list(staggered_rows(64, 64, 8, 8))) == 64 + 63 * 8
    assert len(list(staggered_rows(64, 64, 8, 1))) == 64 * 64
