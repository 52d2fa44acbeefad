from hypothesis import given
from hypothesis import strategies as st

from pipelines.inputs.holdout import held_out, which_held_out

KEYS = [f"folder/{number}.jpg" for number in range(5000)]


def test_share_of_held_out_keys_is_about_what_was_asked():
    assert not any(held_out(key, 0.0) for key in KEYS)
    assert all(held_out(key, 1.0) for key in KEYS)
    assert 0.08 < sum(held_out(key, 0.1) for key in KEYS) / len(KEYS) < 0.12


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_larger_share_holds_out_the_same_keys_and_more(key, a, b):
    assert held_out(key, max(a, b)) >= held_out(key, min(a, b))


def test_held_out_keys_never_change():
    assert [key for key in KEYS[:40] if held_out(key, 0.1)] == [
        "folder/12.jpg",
    ]


@given(st.lists(st.text(), max_size=9), st.floats(0, 1))
def test_batched_and_single_decisions_agree(keys, share):
    mask = which_held_out([key.encode() for key in keys], share)
    assert mask.tolist() == [held_out(key, share) for key in keys]
