from ops.windows import Grid, Wavefront
from prior import GPT, GPTConfig
from prior.sampling.decoder import Decoder
from prior.sampling.window_caches import WindowCaches

DECODER = Decoder(
    GPT(GPTConfig(codebook_size=7, condition_vocab_size=1, condition_length=1, window=4, width=8))
)


def lengths_found(grid, parallel_rows, most):
    """For every cell the length of its window's cache, and how many caches were made; each cell
    leaves its row's number, plus 1, as the length."""
    made, found = [], {}
    front = Wavefront(grid, parallel_rows)
    caches = WindowCaches(lambda: made.append(DECODER.new_cache(1, 16)) or made[-1], most, front)
    for cells in front:
        windows = [grid.window_of(*cell) for cell in cells]
        entered = caches.enter(windows)
        assert len({id(cache) for cache in entered}) == len(cells)
        for cell, cache in zip(cells, entered, strict=True):
            found[cell] = cache.length
            cache.length = cell[0] + 1
    return found, len(made)


def test_a_window_finds_its_cache_as_the_row_above_left_it():
    grid = Grid(9, 10, 4, 2)
    for parallel_rows in (1, 3):
        found, _ = lengths_found(grid, parallel_rows, 99)
        for (row, column), length in found.items():
            window = grid.window_of(row, column)
            begun = column > 0 and grid.window_of(row, column - 1) == window
            above = row > 0 and grid.window_of(row - 1, column) == window
            assert length == (row + 1 if begun else row if above else 0)


def test_there_are_never_more_caches_than_there_is_room_for():
    grid = Grid(9, 30, 4, 2)
    for parallel_rows, most in [(1, 1), (1, 3), (3, 3), (3, 7)]:
        found, made = lengths_found(grid, parallel_rows, most)
        assert made == most
        assert len(found) == 9 * 30


def test_the_cache_that_is_needed_last_goes_first():
    grid = Grid(4, 12, 4, 2)  # one band of five windows
    found, _ = lengths_found(grid, 1, 3)
    # The first row leaves the first two and the last; the third needs the place of the second,
    # since the row that is being drawn comes to the last one sooner.
    kept = [found[1, column] == 1 for column in (0, 4, 6, 8, 10)]
    assert kept == [True, True, False, False, True]


def test_caches_of_a_band_that_is_done_are_handed_on():
    _, made = lengths_found(Grid(40, 12, 4, 2), 1, 99)
    assert made == 5
