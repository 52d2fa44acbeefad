"""The flags of train_tokenizer and train_prior."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from ops.config import Count, Range, Seed, Share, Weight
from pipelines.console import PathOrURI, SourceOrURI, StorageOptions
from pipelines.flags.condition_notes import training_help
from pipelines.flags.flag_types import (
    CACHE_BYTES,
    BatchSize,
    Factorised,
    LearningRate,
    Side,
    Steps,
    Window,
)


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """Flags of any training run; where one is left out, the recipe's own value holds."""

    FROM_RECIPE: ClassVar[frozenset[str]] = frozenset(
        ("steps", "save_every", "sample_every", "log_every", "batch_size", "learning_rate")
    )  # that are None for the recipe's own value
    out: PathOrURI
    """the run folder: checkpoints, metrics.jsonl, TensorBoard events, samples/. At s3:// and gs://
    it is made in a local folder and uploaded with every checkpoint"""
    steps: Steps | None = None
    """train until this many steps are done"""
    save_every: Count | None = None
    """steps between checkpoints"""
    save_minutes: Annotated[float, Range(above=0, most=1e6)] = 15.0
    """minutes after which a checkpoint is written even if --save-every has not come"""
    sample_every: Count | None = None
    """steps between held-out metrics and images"""
    log_every: Count | None = None
    """steps between lines of metrics.jsonl"""
    batch_size: BatchSize | None = None
    """samples per step, over all workers"""
    learning_rate: LearningRate | None = None
    """peak learning rate"""
    skip_non_finite: Annotated[int, Range(least=0)] = 0
    """leave out up to this many batches, in the whole run, whose loss or gradient is not finite;
    beyond that, such a batch ends the run before it has changed the weights"""
    threads: Annotated[int, Range(least=1, most=1024)] | None = None
    """CPU threads (default: torch's choice); at equal numbers losses are bit-identical"""
    seed: Seed = 0
    """seed of the data order, the crops and the initial weights"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N (without --workers). auto: a GPU where the cluster, or without
    --workers this machine, has one; the driver of --workers needs none. A worker that was given a
    GPU uses it or ends the run. Losses repeat bit for bit on a CPU; on a GPU only nearly, since
    gradients are added up in varying order"""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """of matrix products and convolutions; weights, optimizer and losses are always float32. auto:
    bfloat16 on a GPU, float32 on a CPU; tf32 differs from float32 on GPUs alone"""
    accumulate: BatchSize = 1
    """micro-batches per batch (gradient accumulation): less memory, the same losses"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """compile the model with torch.compile; auto does so on GPUs"""
    recompute: bool = False
    """activation checkpointing: less memory, about a third slower"""
    dry_run: bool = False
    """print sizes, memory and steps per epoch, and write nothing"""
    workers: Annotated[int, Range(least=0, most=2**16)] = 0
    """data-parallel processes under Ray, each with its part of every batch; 0: this process"""
    address: str | None = None
    """the Ray cluster to use (default: in a Ray job its own cluster, else one started here)"""
    cpus_per_worker: Annotated[int, Range(least=1, most=1024)] = 1
    """CPU cores, and torch threads, of each worker"""
    restarts: Annotated[int, Range(least=0)] = 10
    """how often the workers may be restarted after one of them has died"""
    storage_option: StorageOptions = ()


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags(TrainingFlags):
    """Train a VQGAN on photographs, label maps or depth maps; run again, it resumes.

    --list-recipes shows the recipes, --list-presets the networks.
    """

    EXAMPLE: ClassVar[str] = "tiny --data imgs/ --out runs/tok"
    FROM_RECIPE: ClassVar[frozenset[str]] = TrainingFlags.FROM_RECIPE | {
        "crop_size", "perceptual", "adversarial", "adversarial_start", "adversarial_ramp",
        "adversarial_weight", "adaptive", "lecam_weight", "r1_weight",
    }  # fmt: skip
    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-segmentation, tiny-depth, photo-f8 or another of --list-recipes"""
    data: SourceOrURI
    """a folder of images, tar files (WebDataset) or Parquet tables, searched with all its
    sub-folders; or one such file; or several by a pattern, 'data-{000..099}.tar'. Also at s3://,
    gs:// and hf://datasets/, and single files at https://"""
    targets: SourceOrURI | None = None
    """a folder of label maps or depth maps named like --data's images, to train on instead of
    these; the same names are held out"""
    num_classes: Annotated[int, Range(least=2, most=2**16)] | None = None
    """for label maps: number of classes (default: the highest label in the data + 1)"""
    void_label: Annotated[int, Range(least=-1, most=2**31 - 1)] | None = None
    """for label maps: the label of unlabelled pixels (default 255); -1: none"""
    crop_size: Side | None = None
    """side of the training crops, in pixels"""
    perceptual: str | None = None
    """lpips (downloads torchvision's VGG16 on first use), none, or the path of that file"""
    adversarial: Literal["hinge", "vanilla", "none"] | None = None
    """the discriminator's loss; none trains without one"""
    adversarial_start: Annotated[int, Range(least=0)] | None = None
    """the step from which the discriminator is trained and its loss is used"""
    adversarial_ramp: Count | None = None
    """steps over which the weight of the discriminator's loss rises to its full value"""
    adversarial_weight: Weight | None = None
    """weight of the discriminator's loss, multiplied by the adaptive weight with --adaptive yes"""
    adaptive: Literal["yes", "no"] | None = None
    """weight the discriminator's loss by the ratio of gradients at the last layer, as in the paper;
    no, with a weight of 0.1 to 0.5, is more stable"""
    lecam_weight: Weight | None = None
    """LeCAM regularisation of the discriminator, against overfitting small data: 0.001 to 0.1"""
    r1_weight: Weight | None = None
    """R1 penalty on the discriminator's gradient at real images"""
    stream: bool = False
    """stream the tars that --data names, a folder of them or 'data-{000..099}.tar': the images are
    not listed before, but read tar after tar and shuffled among neighbours"""
    shuffle_buffer: Annotated[int, Range(least=1, most=2**20)] = 1000
    """with --stream: how many neighbours are shuffled among each other; decides the order"""
    held_out: Share = 0.1
    """share of the images, by key, held out for evaluation"""
    num_workers: Annotated[int, Range(least=0, most=1024)] | None = None
    """DataLoader workers of each training process; 0: decode in a thread of it (default: on a GPU
    one less than its CPU cores, else a quarter of them; at most 4)"""


@dataclass(frozen=True, kw_only=True)
class TrainPriorFlags(TrainingFlags):
    """Train a prior on code stores; run again, it resumes from the newest checkpoint.

    --list-recipes shows the recipes, --list-presets the networks.
    """

    EXAMPLE: ClassVar[str] = "tiny --codes codes.zarr --out runs/prior"
    FROM_RECIPE: ClassVar[frozenset[str]] = TrainingFlags.FROM_RECIPE | {
        "window", "ordering", "factorised",
    }  # fmt: skip
    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-local, base, large or another of --list-recipes"""
    codes: tuple[PathOrURI, ...]
    """stores written by pipelines.encode, all with one tokenizer; s3:// and gs:// too"""
    weights: tuple[Annotated[float, Range(least=0, most=1e9)], ...] | None = None
    """sampling weights of the stores (default: their numbers of images)"""
    conditions: Annotated[tuple[str, ...], tyro.conf.arg(help=training_help())] = ("sos",)
    window: Window | None = None
    """side, in codes, of the square window that the prior is trained on"""
    ordering: str | None = None
    """order in which a window's codes are predicted: row-major, alternate, spiral-in, spiral-out,
    z-curve, subsample or random"""
    factorised: Factorised | None = None
    """yes: embed and predict a code by its levels, of tokenizers with fsq or lfq; no: each code by
    itself; auto: yes where the tokenizer's codes have levels"""
    every_view: bool = False
    """train on each view of an image once an epoch, instead of on one of them at random"""
    cache_memory: Annotated[float, Range(least=0, most=2**20)] | None = None
    """GiB of memory for codes on slow storage: shuffle within as many shards as fit in it"""
    cache_dir: Path | None = None
    """folder for local copies of shards of stores at s3:// and gs://, shared by all processes of a
    machine (default: shards below $SMALTI_CACHE, or below ~/.cache/smalti)"""
    cache_size: Annotated[float, Range(least=0, most=2**20)] = CACHE_BYTES / 2**30
    """GiB of such copies; where a store is larger than a third of it, shuffle within that third"""
    held_out: Share = 0.05
    """share of the images, by key, held out for evaluation"""
    shard: bool = False
    """also shard the weights over the workers (FSDP), for models beyond one GPU"""
