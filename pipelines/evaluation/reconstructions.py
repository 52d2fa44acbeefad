"""Metrics of a tokenizer's reconstructions of held-out images, a few images at a time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ops.config import UserError
from ops.images import write_png
from ops.metrics import code_counts
from ops.runtime import resolve_device
from pipelines.console import progress_bar
from pipelines.evaluation.code_usage import add_code_usage
from pipelines.evaluation.inception import FeatureNetwork, find_inception
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.perceptual_metrics import LPIPS_NAME, RFID_NAME, LPIPSMetric, RFIDMetric
from pipelines.evaluation.pixel_metrics import LabelMetrics, PixelMetrics
from pipelines.evaluation.published_weights import VGG, UnavailableError
from pipelines.flags import EvaluateFlags
from pipelines.training import evaluation_samples, list_data, reconstruction_images
from tokenizer import VQGAN, load_tokenizer, make_perceptual_loss

BATCH = 4  # images
MOST = 1000  # images, unless --most says otherwise
SHOWN = 8  # originals in the file of --reconstructions


class PairMetrics(Protocol):
    """Metrics of originals and their reconstructions, collected a batch at a time."""

    def update(self, samples: Tensor, rebuilt: Tensor) -> None:
        """Take samples of the modality and their reconstructions, both (B, C, H, W)."""

    def add_to(self, measured: Measurements) -> None:
        """Add the metrics of all batches."""


class Reconstructed(NamedTuple):
    """A batch of held-out images; all on the CPU."""

    samples: Tensor  # (B, C, H, W), of the modality
    codes: Tensor  # (B, h, w)
    rebuilt: Tensor  # (B, C, H, W)
    seconds: float  # of encoding


def evaluate_tokenizer(flags: EvaluateFlags, network: FeatureNetwork | None = None) -> Measurements:
    """Quality of reconstructions, codebook usage and encoding speed on held-out images.

    Photographs are measured by PSNR, SSIM, MS-SSIM, gradients, LPIPS and rFID, depth maps without
    the last two, label maps by pixel accuracy and mean IoU. `network` takes the place of Inception.
    """
    device = resolve_device(flags.device)
    tokenizer = load_tokenizer(flags.model, device)
    size = tokenizer.config.codebook_size
    measured, unreadable = Measurements(flags.seed), dict[str, str]()
    measured.facts = {"images": 0, "unreadable": unreadable}
    families = _families(flags, tokenizer, device, measured, network)
    counts = torch.zeros(size, dtype=torch.int64)
    seconds: list[float] = []
    shown: list[Reconstructed] = []
    for batch in _reconstructions(flags, tokenizer, device, unreadable):
        counts += code_counts(batch.codes, size)
        seconds.append(batch.seconds / len(batch.samples))
        measured.facts["images"] += len(batch.samples)
        for family in families:
            family.update(batch.samples, batch.rebuilt)
        if len(shown) * BATCH < SHOWN:
            shown.append(batch)
    if not seconds:
        raise UserError(
            f"{flags.data}: nothing to measure on ({len(unreadable)} of {tokenizer.modality.noun} "
            "could not be read). Raise --held-out; 1 takes all."
        )
    for family in families:
        family.add_to(measured)
    add_code_usage(measured, counts.numpy())
    measured.facts |= {
        "codebook_size": size,
        "bits_per_pixel": math.log2(size) / tokenizer.config.downsample_factor**2,
        "encoded_images_per_second": 1 / max(statistics.median(seconds), 1e-9),
        "threads": torch.get_num_threads(),
        "fingerprint": tokenizer.fingerprint,
    }
    if flags.reconstructions is not None:
        pairs = (torch.cat([b.samples for b in shown]), torch.cat([b.rebuilt for b in shown]))
        images = reconstruction_images(tokenizer.modality, *pairs)
        write_png(flags.reconstructions, images["reconstructions"])
    return measured


@torch.no_grad()
def _reconstructions(
    flags: EvaluateFlags, tokenizer: VQGAN, device: torch.device, unreadable: dict[str, str]
) -> Iterator[Reconstructed]:
    """The held-out images and their reconstructions; notes the files that cannot be read."""
    assert flags.data is not None
    files = list_data(flags.data, flags.targets, flags.held_out)
    unreadable |= dict(files.lost)
    entries, modality = files.measured[: flags.most or MOST], tokenizer.modality
    with progress_bar("image") as bar:
        task = bar.add_task("evaluating", total=len(entries), note="")
        for first in range(0, len(entries), BATCH):
            chosen = entries[first : first + BATCH]
            samples = evaluation_samples(modality, chosen, flags.image_size, unreadable.__setitem__)
            if len(samples):
                started = time.perf_counter()
                codes = tokenizer.encode(modality.pixels(samples.to(device))).cpu()
                seconds = time.perf_counter() - started
                decoded = tokenizer.decode(codes.to(device)).float()
                yield Reconstructed(samples, codes, modality.rebuilt(decoded).cpu(), seconds)
            bar.advance(task, len(chosen))


def _families(
    flags: EvaluateFlags,
    tokenizer: VQGAN,
    device: torch.device,
    measured: Measurements,
    network: FeatureNetwork | None,
) -> list[PairMetrics]:
    """The metrics that the tokenizer's modality has; notes those whose files are missing."""
    modality = tokenizer.modality
    if modality.config.kind == "segmentation":
        return [LabelMetrics(modality)]
    found: list[PairMetrics] = [PixelMetrics()]
    if modality.config.kind != "image":
        return found
    try:
        lpips = make_perceptual_loss(str(VGG.find(flags.vgg)))
        assert lpips is not None
        found.append(LPIPSMetric(lpips.to(device), device))
    except UnavailableError as error:
        measured.lack([LPIPS_NAME], str(error))
    try:
        network = network or find_inception(flags.inception, flags.resize).to(device)
        found.append(RFIDMetric(network, device))
        measured.facts["features"] = network.name
    except UnavailableError as error:
        measured.lack([RFID_NAME], str(error))
    return found
