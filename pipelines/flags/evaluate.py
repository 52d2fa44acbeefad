"""The flags of the evaluate command, and which kind of model has which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import tyro

from ops.config import ConfigError, Count, Seed, Share
from pipelines.console import NameOrURI, SourceOrURI, StorageOptions
from pipelines.flags.flag_types import Side

Kind = Literal["tokenizer", "prior", "samples", "store"]
Resize = Literal["adm", "clean"]

#: Flags that not every kind has, with the kinds that have them.
OF_KINDS: Mapping[str, tuple[Kind, ...]] = MappingProxyType(
    {
        "data": ("tokenizer", "prior", "samples"),
        "targets": ("tokenizer",),
        "held_out": ("tokenizer", "prior"),
        "image_size": ("tokenizer",),
        "most": ("tokenizer", "prior", "samples"),
        "reconstructions": ("tokenizer",),
        "inception": ("tokenizer", "samples"),
        "vgg": ("tokenizer",),
        "resize": ("tokenizer", "samples"),
        "reference": ("samples",),
        "save_npz": ("samples",),
        "spot_decodes": ("store",),
    }
)
NEED_DATA: tuple[Kind, ...] = ("tokenizer", "prior")


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Evaluate the reconstructions of a tokenizer, the likelihood of codes under a prior, the
    images of a folder of samples, or the codes of a store.

    Writes metrics.json: every metric with its value, unit and number of samples, means with 95 %
    bootstrap intervals. A metric whose files are missing is left out, and the reason given.
    """

    EXAMPLE: ClassVar[str] = "tokenizer photo-f8 --data imgs/ --out metrics.json --held-out 1"

    kind: tyro.conf.Positional[Annotated[Kind, tyro.conf.arg()]]
    """what MODEL is"""
    model: tyro.conf.Positional[Annotated[NameOrURI, tyro.conf.arg(metavar="MODEL")]]
    """a bundled tokenizer's name, a model folder or a run folder; for samples what generate wrote,
    or any folder of images; for a store its path"""
    data: SourceOrURI | None = None
    """images for a tokenizer (or label maps, or depth maps), a code store for a prior, real images
    to compare samples with; s3:// and gs:// too, and images at https:// and hf://datasets/"""
    targets: SourceOrURI | None = None
    """for a tokenizer of label or depth maps: a folder of these, named like --data's images"""
    out: Path
    """the JSON file to write, for instance metrics.json"""
    held_out: Share = 0.1
    """evaluate on this share of the images, the same that training holds out; 1: all"""
    image_size: Side = 256
    """side, in pixels, of the centre crops that a tokenizer is evaluated on"""
    most: Count | None = None
    """evaluate on at most this many samples; default: 1000 for a tokenizer or a prior, all samples
    of a folder"""
    reconstructions: Path | None = None
    """for a tokenizer: also write this PNG of originals above their reconstructions"""
    inception: Path | None = None
    """torch-fidelity's weights-inception-2015-12-05-6726825d.pth, for FID, KID, Inception Score,
    precision and recall; default: the file in torch's cache, if it is there"""
    vgg: Path | None = None
    """torchvision's vgg16-397923af.pth, for LPIPS; default: the file in torch's cache, if it is
    there"""
    resize: Resize = "adm"
    """how images are scaled to Inception's 299x299: adm as the evaluator of ADM and torch-fidelity
    (bilinear of TensorFlow 1, not antialiased), clean as clean-fid (bicubic, antialiased)"""
    reference: Path | None = None
    """for samples: FID against the statistics mu and sigma in this .npz, such as a reference batch
    of ADM's evaluator"""
    save_npz: Path | None = None
    """for samples: also write the images as array arr_0 of this .npz, which the field's evaluators
    read"""
    spot_decodes: Path | None = None
    """for a store: also write this PNG of the images whose codes are the rarest, decoded"""
    seed: Seed = 0
    """decides the resamples of intervals, the subsets of KID and the permutations of drift"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    storage_option: StorageOptions = ()


def check_kind(flags: EvaluateFlags) -> None:
    """Raise ConfigError where a flag is given that MODEL's kind does not have, or lacks one."""
    for field in dataclasses.fields(flags):
        kinds = OF_KINDS.get(field.name)
        if kinds and flags.kind not in kinds and getattr(flags, field.name) != field.default:
            raise ConfigError(
                f"--{field.name.replace('_', '-')} is for {' and '.join(kinds)}, not for "
                f"{flags.kind}. Leave it out."
            )
    if flags.data is None and flags.kind in NEED_DATA:
        wanted = "a folder of images" if flags.kind == "tokenizer" else "a code store"
        raise ConfigError(f"evaluate {flags.kind} needs --data, {wanted}.")
