"""One evaluation: measure what the flags name and write metrics.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ops.files import write_json
from ops.precision import use_precision
from ops.version import __version__
from pipelines.console import recorded_flags
from pipelines.evaluation.likelihoods import evaluate_prior
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.reconstructions import evaluate_tokenizer
from pipelines.evaluation.samples import evaluate_samples
from pipelines.evaluation.store_quality import evaluate_store
from pipelines.flags import EvaluateFlags, Kind, check_kind

EVALUATIONS: Mapping[Kind, Callable[[EvaluateFlags], Measurements]] = {
    "tokenizer": evaluate_tokenizer,
    "prior": evaluate_prior,
    "samples": evaluate_samples,
    "store": evaluate_store,
}


def evaluate(flags: EvaluateFlags) -> Measurements:
    """Measure and write the JSON file; returns what it has.

    Raises ConfigError where a flag does not go with the kind, UserError where there is nothing to
    measure.
    """
    check_kind(flags)
    use_precision("float32")
    measured = EVALUATIONS[flags.kind](flags)
    settings = {name: str(value) for name, value in recorded_flags(flags).items()}
    versions = {"torch": torch.__version__, "smalti": __version__}
    write_json(flags.out, measured.as_json(settings, versions))
    return measured
