"""Metrics of samples: FID, KID, Inception Score, precision and recall."""

from __future__ import annotations

from pathlib import Path

from ops.config import UserError
from ops.runtime import resolve_device
from pipelines.evaluation.distances import (
    FID_NAMES,
    KID_NAMES,
    PRECISION_NAMES,
    SCORE_NAMES,
    add_inception_score,
    add_kid,
    add_precision_and_recall,
    frechet_distance,
)
from pipelines.evaluation.feature_files import FeatureFiles, FeatureFolder
from pipelines.evaluation.image_sets import ImageSet, list_images, list_samples
from pipelines.evaluation.inception import FeatureNetwork, find_inception
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.published_weights import UnavailableError
from pipelines.evaluation.running_statistics import Statistics, read_statistics
from pipelines.evaluation.sample_arrays import write_sample_array
from pipelines.flags import EvaluateFlags

NO_REAL = "it compares samples with real images: give these with --data"


def evaluate_samples(flags: EvaluateFlags, network: FeatureNetwork | None = None) -> Measurements:
    """Compare the images in a folder with real ones, or with the statistics of --reference.

    Real images are scaled and cut in the centre to the size of the first sample. `network` takes
    the place of Inception, which makes other metrics of all; it is found otherwise.
    """
    measured = Measurements(flags.seed)
    if "://" in flags.model:
        raise UserError(f"{flags.model}: samples are read from local folders. Copy them to one.")
    samples = list_samples(Path(flags.model), flags.most)
    measured.facts["images"] = len(samples)
    if flags.save_npz is not None:
        measured.facts["images_in_npz"] = write_sample_array(flags.save_npz, samples)
    reference = None if flags.reference is None else read_statistics(flags.reference)
    device = resolve_device(flags.device)
    try:
        network = network or find_inception(flags.inception, flags.resize).to(device)
    except UnavailableError as error:
        names = (*FID_NAMES, *KID_NAMES, *SCORE_NAMES, *PRECISION_NAMES)
        measured.lack(names, str(error))
        return measured
    measured.facts |= {"features": network.name, "unreadable": {}}
    folder = FeatureFolder(flags.out.with_name(f"{flags.out.stem}-features"), network, device)
    generated = folder.features(samples)
    real = None
    if flags.data is not None:
        listed = list_images(flags.data, flags.most)
        real = folder.features(ImageSet(listed.entries, samples.first_size()))
        measured.facts["real_images"] = len(real.pooled)
    for found in (generated, real):
        measured.facts["unreadable"] |= {} if found is None else found.unreadable
    _compare(measured, generated, real, reference)
    return measured


def _compare(
    measured: Measurements,
    generated: FeatureFiles,
    real: FeatureFiles | None,
    reference: Statistics | None,
) -> None:
    _add_fid(measured, generated, real, reference)
    if real is None:
        measured.lack((*KID_NAMES, *PRECISION_NAMES), NO_REAL)
    else:
        add_kid(measured, generated.pooled, real.pooled)
        add_precision_and_recall(measured, generated.pooled, real.pooled)
    add_inception_score(measured, generated.logits)


def _add_fid(
    measured: Measurements,
    generated: FeatureFiles,
    real: FeatureFiles | None,
    reference: Statistics | None,
) -> None:
    """FID against the reference, or else against the real images."""
    smallest = min(len(found.pooled) for found in (generated, real) if found is not None)
    if reference is None and real is None:
        measured.lack(FID_NAMES, f"{NO_REAL}, or their statistics with --reference")
    elif smallest < 2:
        measured.lack(FID_NAMES, "it needs 2 images of each set")
    else:
        if reference is None:
            assert real is not None
            reference = real.statistics()
        statistics = generated.statistics()
        if len(reference.mu) != len(statistics.mu):
            raise UserError(
                f"--reference has statistics of {len(reference.mu)} features, but the network "
                f"gives {len(statistics.mu)}. Are they of Inception's 2048?"
            )
        distance = frechet_distance(statistics, reference)
        measured.add("fid", distance, "squared distance", len(generated.pooled))
