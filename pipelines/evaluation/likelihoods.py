"""The likelihood of held-out codes under a prior."""

from __future__ import annotations

import math

import torch

from ops.config import UserError
from ops.runtime import resolve_device
from ops.web_paths import WebPath
from pipelines.conditioning import tracks_of
from pipelines.evaluation.measurements import Measurements
from pipelines.flags import EvaluateFlags
from pipelines.store import CodeStore
from pipelines.streaming import CodeDataset, check_tokenizer
from pipelines.training import held_out_cut, held_out_nll
from prior import load_prior

MOST = 1000  # rows, unless --most says otherwise


def evaluate_prior(flags: EvaluateFlags) -> Measurements:
    """Mean negative log-likelihood of held-out codes: in nats and bits a code, in bits a pixel."""
    assert flags.data is not None
    if isinstance(flags.data, WebPath):
        raise UserError(f"{flags.data} is no code store. Name one on a disk, at s3:// or gs://.")
    device = resolve_device(flags.device)
    prior, store = load_prior(flags.model, device), CodeStore.open(flags.data)
    fingerprint = prior.tokenizer_info["fingerprint"]
    check_tokenizer(store, fingerprint, f"the prior in {flags.model}")
    dataset = CodeDataset(
        store,
        window=prior.config.window,
        batch_size=8,
        held_out_share=min(flags.held_out, 1.0),
        may_be_all_held_out=True,
        tracks=tracks_of([part.name for part in prior.conditions.parts]),
    )
    batches = dataset.held_out_batches(flags.most or MOST, held_out_cut(prior.config))
    if not batches:
        raise UserError(f"{flags.data}: no row to measure on. Raise --held-out; 1 takes all.")
    with torch.no_grad():
        found = held_out_nll(prior.model, prior.conditions, batches, device)
    nats, cells = found.rows[found.rows[:, 1] > 0].numpy().T
    measured = Measurements(flags.seed)
    measured.facts = {"rows": len(cells), "fingerprint": fingerprint}
    factor = prior.tokenizer_info["downsample_factor"]
    bits = nats / cells / math.log(2)
    measured.add_mean("nats_per_code", nats / cells, "nats a code", cells)
    measured.add_mean("bits_per_code", bits, "bits a code", cells)
    measured.add_mean("bits_per_pixel", bits / factor**2, "bits a pixel", cells)
    return measured
