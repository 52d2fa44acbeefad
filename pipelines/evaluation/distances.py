"""FID, KID, Inception Score, precision and recall of features, all by torch-fidelity's code."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pipelines.evaluation.inception import fidelity
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.running_statistics import Statistics

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SPLITS = 10  # of the samples, for the Inception Score
NEIGHBOURS = 3  # whose distance is the radius around a feature, for precision and recall
DISTANCES_AT_ONCE = 1 << 22  # numbers, of which the library holds several copies

FID_NAMES = ("fid",)
KID_NAMES = ("kid", "kid_std")
SCORE_NAMES = ("inception_score", "inception_score_std")
PRECISION_NAMES = ("precision", "recall")


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """The Fréchet distance of two Gaussians; raises UnavailableError without torch-fidelity."""
    module = fidelity("metric_fid")
    found = module.fid_statistics_to_metric(one._asdict(), other._asdict(), verbose=False)
    return float(found[module.KEY_METRIC_FID])


def add_kid(measured: Measurements, generated: Tensor, real: Tensor) -> None:
    """Add KID, its mean and standard deviation over subsets, from features (n, D) and (m, D).

    With fewer images than KID_SUBSET_SIZE, subsets have as many as the smaller set.
    """
    module = fidelity("metric_kid")
    size = min(KID_SUBSET_SIZE, len(generated), len(real))
    if size < 2:
        measured.lack(KID_NAMES, f"it needs 2 images of each set, found {size}")
        return
    found = module.kid_features_to_metric(
        generated, real, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False,
        rng_seed=measured.seed % 2**32,
    )  # fmt: skip
    measured.facts["kid_subset_size"] = size
    measured.add("kid", found[module.KEY_METRIC_KID_MEAN], "squared MMD", len(generated))
    measured.add("kid_std", found[module.KEY_METRIC_KID_STD], "squared MMD", len(generated))


def add_inception_score(measured: Measurements, logits: Tensor) -> None:
    """Add the Inception Score, mean and standard deviation over splits, from logits (n, classes).

    Split by split, so that memory is that of one.
    """
    count = len(logits)
    if count < SPLITS:
        measured.lack(SCORE_NAMES, f"it needs {SPLITS} images, found {count}")
        return
    module = fidelity("metric_isc")
    order = np.random.RandomState(measured.seed % 2**32).permutation(count)
    scores = []
    for split in range(SPLITS):
        chosen = order[split * count // SPLITS : (split + 1) * count // SPLITS]
        found = module.isc_features_to_metric(logits[chosen], splits=1, shuffle=False)
        scores.append(found[module.KEY_METRIC_ISC_MEAN])
    measured.add("inception_score", float(np.mean(scores)), "1", count)
    measured.add("inception_score_std", float(np.std(scores)), "1", count)


def add_precision_and_recall(measured: Measurements, generated: Tensor, real: Tensor) -> None:
    """Add precision and recall (Kynkäänniemi et al. 2019) from features (n, D) and (m, D).

    Time grows with n * m; memory does not.
    """
    smaller = min(len(generated), len(real))
    if smaller <= NEIGHBOURS:
        measured.lack(PRECISION_NAMES, f"it needs {NEIGHBOURS + 1} images of each set")
        return
    module = fidelity("metric_prc")
    larger = max(len(generated), len(real))
    found = module.prc_features_to_metric(
        generated, real, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False,
        prc_batch_size=max(1, DISTANCES_AT_ONCE // larger),
    )  # fmt: skip
    measured.add("precision", found[module.KEY_METRIC_PRECISION], "share", len(generated))
    measured.add("recall", found[module.KEY_METRIC_RECALL], "share", len(real))
