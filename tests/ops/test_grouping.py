import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ops.grouping import by_group


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_each_position_has_the_result_of_its_group(groups):
    results = by_group(
        np.array(groups), lambda group, where: np.stack([where, np.full_like(where, group)], 1)
    )
    assert results.tolist() == [[position, group] for position, group in enumerate(groups)]
