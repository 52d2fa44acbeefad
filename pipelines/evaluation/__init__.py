"""Evaluation: metrics of tokenizers, priors, samples and code stores, as metrics.json.

The command's flags (pipelines.flags) name what is measured; run.py calls the evaluation of that
kind (reconstructions.py, likelihoods.py, samples.py, store_quality.py) and writes what it found
(measurements.py: values with units, counts and intervals, and what is absent and why). A family of
metrics has a file: pixel_metrics.py, perceptual_metrics.py, code_usage.py, distances.py (FID, KID,
Inception Score, precision and recall, computed by torch-fidelity), code_drift.py and
duplicate_rows.py. Features of images are computed once and kept as files (feature_files.py); the
network is Inception with weights from a file (inception.py). Read run.py first.
"""

from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.reconstructions import evaluate_tokenizer
from pipelines.evaluation.run import evaluate
from pipelines.evaluation.samples import evaluate_samples

__all__ = [
    "Measurements",
    "evaluate",
    "evaluate_samples",
    "evaluate_tokenizer",
]
