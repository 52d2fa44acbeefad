import pickle

import numpy as np

from ops.cache import ArrayCache

ARRAYS = [np.full((2, 2, 3), number, np.uint8) for number in range(4)]


def test_the_least_recently_used_is_dropped_first():
    cache = ArrayCache(max_bytes=3 * 12)
    for number in range(3):
        cache.put(number, ARRAYS[number])
    cache.get(0)
    cache.put(3, ARRAYS[3])
    assert cache.get(1) is None
    assert cache.get(0) is ARRAYS[0]
    assert cache.get(3) is ARRAYS[3]
    assert cache.nbytes == 36


def test_the_newest_is_kept_whatever_its_size():
    cache = ArrayCache(max_bytes=0)
    for number in range(2):
        cache.put(number, ARRAYS[number])
        assert cache.get(number) is ARRAYS[number]
    assert cache.get(0) is None
    assert cache.nbytes == 12


def test_a_replaced_array_no_longer_counts():
    cache = ArrayCache(max_bytes=24)
    cache.put("a", ARRAYS[0])
    cache.put("a", ARRAYS[1])
    cache.put("b", ARRAYS[2])
    assert cache.nbytes == 24
    assert cache.get("a") is ARRAYS[1]


def test_a_pickled_cache_arrives_empty():
    cache = ArrayCache(max_bytes=36)
    cache.put("a", ARRAYS[0])
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.get("a") is None
    assert copy.max_bytes == 36
