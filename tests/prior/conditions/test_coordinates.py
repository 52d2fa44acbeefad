import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prior import Coordinates
from tests.conftest import examples
from tests.prior.conditions.test_contract import SHAPE


@given(
    top=st.integers(0, 5),
    left=st.integers(0, 5),
    more=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    f=st.sampled_from([1, 2, 4, 8, 16]),
)
@settings(max_examples=examples(30), deadline=None)
def test_coordinates_are_the_published_map_of_pixels(top, left, more, f):
    """The map made and pooled pixel by pixel, in float64."""
    rows, columns = top + SHAPE[0] + more[0], left + SHAPE[1] + more[1]
    pixels = torch.arange(rows * f * columns * f, dtype=torch.float64) / (rows * columns * f * f)
    pooled = F.avg_pool2d(pixels.view(1, 1, rows * f, columns * f), f)[0, 0]
    expected = (50 * pooled[top : top + SHAPE[0], left : left + SHAPE[1]]).round().clamp(max=49)
    place = torch.tensor([[top, left, rows, columns]])
    tokens = Coordinates(codebook_size=50, downsample_factor=f).tokens({"place": place}, 1, SHAPE)
    assert (tokens[0] - expected).abs().max() <= 1  # sums that end in a half may round either way
    assert (tokens[0] == expected).double().mean() > 0.9
