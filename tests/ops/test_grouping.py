import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ops.grouping import by_group


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_each_place_has_the_answer_of_its_own_group(groups):
    answer = by_group(
        np.array(groups), lambda group, places: np.stack([places, np.full_like(places, group)], 1)
    )
    assert answer.tolist() == [[place, group] for place, group in enumerate(groups)]
