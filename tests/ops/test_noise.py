import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.noise import philox4x32, uniforms
from tests.conftest import examples

# The known answers that come with the Random123 library (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, answer):
    np.testing.assert_array_equal(philox4x32(words(counter), words(key)), words(answer))


def test_philox_of_many_counters_is_philox_of_each():
    counters = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    key = np.array([7, 9], np.uint32)
    together = philox4x32(counters, key)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], philox4x32(counters[index], key))


@given(
    seed=st.integers(0, 2**64 - 1),
    sample=st.integers(0, 2**64 - 1),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
)
@settings(max_examples=examples(40), deadline=None)
def test_a_number_depends_on_its_place_alone(seed, sample, rows, columns):
    small = uniforms(seed, [sample], rows, columns)
    large = uniforms(seed, [5, sample], rows + 3, columns + 2)
    np.testing.assert_array_equal(small[0], large[1, :rows, :columns])
    below = uniforms(seed, [sample], rows, columns, first_row=3)
    np.testing.assert_array_equal(below[0], large[1, 3:, :columns])
    assert small.dtype == np.float64
    assert small.min() >= 0
    assert small.max() < 1


def test_seeds_samples_rows_and_columns_all_differ():
    drawn = np.stack([uniforms(seed, [0, 1, 2**32], 8, 8) for seed in (0, 1, 2**32)])
    assert len(np.unique(drawn)) == drawn.size


def test_numbers_are_spread_evenly():
    drawn = uniforms(3, range(4), 100, 100).ravel()
    counts, _ = np.histogram(drawn, bins=100, range=(0, 1))
    chi_square = ((counts - 400.0) ** 2 / 400.0).sum()
    assert chi_square < 150  # 99 degrees of freedom: exceeded once in 1,500 honest generators
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


@pytest.mark.parametrize(("seed", "samples"), [(-1, [0]), (2**64, [0]), (0, [-1])])
def test_numbers_out_of_range_are_refused(seed, samples):
    with pytest.raises(ConfigError, match="whole number"):
        uniforms(seed, samples, 2, 2)
