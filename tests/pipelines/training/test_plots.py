import numpy as np

from pipelines.training.plots import curves_picture, loss_map_picture, usage_picture


def bright_places(picture):
    """Where (row, column) viridis' yellow is, as fractions of the picture, without its scale."""
    map_only = picture[:, : picture.shape[1] * 7 // 10].astype(int)
    yellow = np.abs(map_only - (253, 231, 37)).sum(-1) < 12
    return np.argwhere(yellow) / picture.shape[:2]


def test_a_cell_with_a_high_loss_is_bright_at_its_place():
    nll = np.zeros((2, 2))
    nll[1, 0] = 5.0
    picture = loss_map_picture(nll)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    places = bright_places(picture)
    assert len(places) > 1000
    assert places[:, 0].min() > 0.45  # the lower row
    assert places[:, 1].max() < 0.55  # the left column
    assert bright_places(loss_map_picture(nll[::-1]))[:, 0].max() < 0.55


def line_places(picture):
    """Where (row, column) matplotlib's first colour is."""
    blue = np.abs(picture.astype(int) - (31, 119, 180)).sum(-1) < 30
    return np.argwhere(blue)


def test_curves_follow_the_metrics_and_rates_are_left_out():
    lines = [{"step": step, "loss": float(step), "steps_per_second": 1.0} for step in range(10)]
    lines.append({"step": 10, "loss": float("nan")})
    picture = curves_picture(lines)
    places = line_places(picture)
    left, right = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
    assert left[0] > right[0]  # rows count from above
    without_rates = [{"step": line["step"], "loss": line["loss"]} for line in lines]
    assert np.array_equal(curves_picture(without_rates), picture)
    assert curves_picture([]) is None


def test_usage_falls_with_the_rank_and_counts_the_codes_that_occur():
    counts = np.array([0, 1, 1000, 30, 0, 200])
    places = line_places(usage_picture(counts))
    left, right = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
    assert left[0] < right[0]
    assert np.array_equal(usage_picture(counts[::-1]), usage_picture(counts))
    assert not np.array_equal(usage_picture(counts[1:]), usage_picture(counts))  # of 5, not of 6
