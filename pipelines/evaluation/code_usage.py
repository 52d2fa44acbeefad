"""How much of a codebook is used, from how often each code occurs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ops.metrics import Usage, codebook_usage
from pipelines.evaluation.measurements import Measurements

Counts = NDArray[np.integer[Any]]


def usage_of(counts: Counts) -> Usage:
    """The usage that counts (K,) show."""
    return codebook_usage(torch.from_numpy(np.asarray(counts, np.int64)))


def add_code_usage(measured: Measurements, counts: Counts) -> None:
    """Add how many codes occur, the perplexity and entropy of their distribution, from (K,)."""
    usage, total = usage_of(counts), int(counts.sum())
    measured.add("codes_used", float(usage.used), "codes", total)
    measured.add("dead_codes", float(len(counts) - usage.used), "codes", total)
    measured.add("codebook_usage", usage.used / len(counts), "share", total)
    measured.add("perplexity", usage.perplexity, "codes", total)
    measured.add("entropy", usage.bits, "bits a code", total)
