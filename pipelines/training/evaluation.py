"""Metrics on held-out data of a tokenizer's reconstructions, or of a prior's likelihoods."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ops.config import ConfigError, Count, Share, UserError
from ops.files import write_json
from ops.images import write_png
from ops.paths import ObjectPath
from ops.precision import use_precision
from ops.runtime import resolve_device
from pipelines.conditioning import tracks_of
from pipelines.console import NameOrURI, PathOrURI, StorageOptions
from pipelines.store import CodeStore
from pipelines.streaming import CodeDataset, check_tokenizer
from pipelines.training.prior_task import held_out_cut, held_out_nll
from pipelines.training.recipe import Side
from pipelines.training.tokenizer_data import evaluation_samples, list_data
from pipelines.training.tokenizer_task import reconstruction_images, reconstruction_metrics
from prior import load_prior
from tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Evaluate the reconstructions of a tokenizer, or the likelihood of codes under a prior."""

    kind: tyro.conf.Positional[Annotated[Literal["tokenizer", "prior"], tyro.conf.arg()]]
    """what MODEL is"""
    model: tyro.conf.Positional[Annotated[NameOrURI, tyro.conf.arg(metavar="MODEL")]]
    """a bundled tokenizer's name, a model folder or a run folder; s3:// and gs:// too"""
    data: PathOrURI
    """images for a tokenizer (or label maps, or depth maps), a code store, also at s3:// and
    gs://, for a prior"""
    targets: Path | None = None
    """for a tokenizer of label or depth maps: a folder of these, named like --data's images"""
    out: Path
    """the JSON file to write, for instance metrics.json"""
    held_out: Share = 0.1
    """evaluate on this share of the images, the same that training holds out; 1: all"""
    image_size: Side = 256
    """side, in pixels, of the centre crops that a tokenizer is evaluated on"""
    most: Count = 1000
    """evaluate on at most this many samples"""
    reconstructions: Path | None = None
    """for a tokenizer: also write this PNG of originals above their reconstructions"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    storage_option: StorageOptions = ()


def evaluate(flags: EvaluateFlags) -> dict[str, Any]:
    """Measure and write the JSON file; returns the metrics."""
    use_precision("float32")
    measure = evaluate_tokenizer if flags.kind == "tokenizer" else evaluate_prior
    metrics = measure(flags)
    settings = {name: str(value) for name, value in asdict(flags).items()}
    write_json(flags.out, {"metrics": metrics, "settings": settings, "torch": torch.__version__})
    return metrics


def evaluate_tokenizer(flags: EvaluateFlags) -> dict[str, Any]:
    """Reconstruction metrics (PSNR and SSIM; of label maps, pixel accuracy and mean IoU), codebook
    usage and encoding speed on held-out images."""
    device = resolve_device(flags.device)
    tokenizer = load_tokenizer(flags.model, device)
    modality = tokenizer.modality
    if isinstance(flags.data, ObjectPath):
        raise ConfigError(f"{flags.data}: images are read from local paths. Copy them to one.")
    files = list_data(flags.data, flags.targets, flags.held_out)
    unreadable = dict(files.lost)
    samples = evaluation_samples(
        modality, files.measured[: flags.most], flags.image_size, unreadable.__setitem__
    )
    if not len(samples):
        raise UserError(
            f"{flags.data}: nothing to measure on ({len(unreadable)} of {modality.noun} could not "
            "be read). Raise --held-out; 1 takes all."
        )
    metrics, rebuilt, _ = reconstruction_metrics(tokenizer, samples, device)
    started = time.perf_counter()
    for part in torch.split(samples, 4):
        tokenizer.encode(modality.pixels(part.to(device))).cpu()
    rate = len(samples) / (time.perf_counter() - started)
    if flags.reconstructions is not None:
        shown = reconstruction_images(modality, samples, rebuilt)
        write_png(flags.reconstructions, shown["reconstructions"])
    size = tokenizer.config.codebook_size
    return {
        "images": len(samples),
        "unreadable": unreadable,
        **metrics,
        "codebook_size": size,
        "bits_per_pixel": math.log2(size) / tokenizer.config.downsample_factor**2,
        "encoded_images_per_second": rate,
        "threads": torch.get_num_threads(),
        "fingerprint": tokenizer.fingerprint,
    }


def evaluate_prior(flags: EvaluateFlags) -> dict[str, Any]:
    """Mean negative log-likelihood of held-out codes, in nats and in bits per code."""
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
    batches = dataset.held_out_batches(flags.most, held_out_cut(prior.config))
    if not batches:
        raise UserError(f"{flags.data}: no row to measure on. Raise --held-out; 1 takes all.")
    with torch.no_grad():
        nll = held_out_nll(prior.model, prior.conditions, batches, device).mean
    return {
        "rows": sum(len(batch["codes"]) for batch in batches),
        "nats_per_code": nll,
        "bits_per_code": nll / math.log(2),
        "fingerprint": fingerprint,
    }
