from ops.windows import Grid, Wavefront
from prior import GPT, GPTConfig
from prior.sampling.decoder import Decoder
from prior.sampling.kv_cache import WindowCaches

DECODER = Decoder(
    GPT(GPTConfig(codebook_size=7, condition_vocab_size=1, condition_length=1, window=4, width=8))
)


def lengths_found(grid, parallel_rows, max_caches):
    """For each cell the length of its window's cache on entry, and how many caches were made; each
    cell sets the length to its row's number plus 1."""
    made, found = [], {}
    schedule = Wavefront(grid, parallel_rows)
    caches = WindowCaches(
        lambda: made.append(DECODER.new_cache(1, 16)) or made[-1], max_caches, schedule
    )
    for cells in schedule:
        windows = [grid.window_of(*cell) for cell in cells]
        entered = caches.enter(windows)
        assert len({id(cache) for cache in entered}) == len(cells)
        for cell, cache in zip(cells, entered, strict=True):
            found[cell] = cache.length
            cache.length = cell[0] + 1
    return found, len(made)


def test_a_window_keeps_its_cache_from_row_to_row():
    grid = Grid(9, 10, 4, 2)
    for parallel_rows in (1, 3):
        found, _ = lengths_found(grid, parallel_rows, 99)
        for (row, column), length in found.items():
            window = grid.window_of(row, column)
            entered = column > 0 and grid.window_of(row, column - 1) == window
            above = row > 0 and grid.window_of(row - 1, column) == window
            assert length == (row + 1 if entered else row if above else 0)


def test_the_number_of_caches_is_bounded():
    grid = Grid(9, 30, 4, 2)
    for parallel_rows, max_caches in [(1, 1), (1, 3), (3, 3), (3, 7)]:
        found, made = lengths_found(grid, parallel_rows, max_caches)
        assert made == max_caches
        assert len(found) == 9 * 30


def test_the_cache_that_is_needed_last_is_evicted_first():
    grid = Grid(4, 12, 4, 2)  # one band of five windows
    found, _ = lengths_found(grid, 1, 3)
    # The first row keeps the first two and the last. The third window takes the second one's cache,
    # since the current row enters the last window sooner.
    kept = [found[1, column] == 1 for column in (0, 4, 6, 8, 10)]
    assert kept == [True, True, False, False, True]


def test_caches_of_a_finished_band_are_reused():
    _, made = lengths_found(Grid(40, 12, 4, 2), 1, 99)
    assert made == 5
