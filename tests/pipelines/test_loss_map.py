import numpy as np

from pipelines.loss_map import loss_map_picture


def bright_places(picture):
    """Where (row, column) viridis' yellow lies, as shares of the picture; not in its scale."""
    map_only = picture[:, : picture.shape[1] * 7 // 10].astype(int)
    yellow = np.abs(map_only - (253, 231, 37)).sum(-1) < 12
    return np.argwhere(yellow) / picture.shape[:2]


def test_a_place_that_is_hard_to_foretell_is_bright_where_it_lies():
    nats = np.zeros((2, 2))
    nats[1, 0] = 5.0
    picture = loss_map_picture(nats)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    places = bright_places(picture)
    assert len(places) > 1000
    assert places[:, 0].min() > 0.45  # the lower row
    assert places[:, 1].max() < 0.55  # the left column
    assert bright_places(loss_map_picture(nats[::-1]))[:, 0].max() < 0.55
