import numpy as np

from pipelines.training.plots import plot_curves, plot_loss_map, plot_usage


def bright_places(image):
    """Where (row, column) viridis' yellow is, as fractions of the image, without its scale."""
    map_only = image[:, : image.shape[1] * 7 // 10].astype(int)
    yellow = np.abs(map_only - (253, 231, 37)).sum(-1) < 12
    return np.argwhere(yellow) / image.shape[:2]


def test_a_cell_with_a_high_loss_is_bright_at_its_place():
    nll = np.zeros((2, 2))
    nll[1, 0] = 5.0
    image = plot_loss_map(nll)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    places = bright_places(image)
    assert len(places) > 1000
    assert places[:, 0].min() > 0.45  # the lower row
    assert places[:, 1].max() < 0.55  # the left column
    assert bright_places(plot_loss_map(nll[::-1]))[:, 0].max() < 0.55


def line_places(image):
    """Where (row, column) matplotlib's first colour is."""
    blue = np.abs(image.astype(int) - (31, 119, 180)).sum(-1) < 30
    return np.argwhere(blue)


def test_curves_follow_the_metrics_and_rates_are_left_out():
    lines = [{"step": step, "loss": float(step), "steps_per_second": 1.0} for step in range(10)]
    lines.append({"step": 10, "loss": float("nan")})
    image = plot_curves(lines)
    places = line_places(image)
    left, right = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
    assert left[0] > right[0]  # rows count from above
    without_rates = [{"step": line["step"], "loss": line["loss"]} for line in lines]
    assert np.array_equal(plot_curves(without_rates), image)
    assert plot_curves([]) is None


def test_usage_falls_with_the_rank_and_counts_the_codes_that_occur():
    counts = np.array([0, 1, 1000, 30, 0, 200])
    places = line_places(plot_usage(counts))
    left, right = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
    assert left[0] < right[0]
    assert np.array_equal(plot_usage(counts[::-1]), plot_usage(counts))
    assert not np.array_equal(plot_usage(counts[1:]), plot_usage(counts))  # of 5, not of 6
