"""The flags of train_tokenizer and train_prior, and the configs made of those that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from ops.config import ConfigError, Count, Range, Seed, Share, Weight, check_flags
from ops.precision import resolve_precision
from ops.ranks import Ranks
from pipelines.conditioning import training_help
from pipelines.console import PathOrURI, StorageOptions
from pipelines.store import CACHE_BYTES
from pipelines.training.estimate import Division
from pipelines.training.launch import WorkerConfig
from pipelines.training.loop import LoopSettings
from pipelines.training.optimizer import LearningRate
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recipe import (
    LOOP_FIELDS,
    BatchSize,
    Factorised,
    PriorRecipe,
    Side,
    Steps,
    TokenizerRecipe,
    Window,
)

Recipe = TypeVar("Recipe", TokenizerRecipe, PriorRecipe)


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """Flags of any training run; where one is left out, the recipe's own value holds."""

    out: PathOrURI
    """the run folder: checkpoints, metrics.jsonl, TensorBoard events, samples/. At s3:// and gs://
    it is made in a local folder and uploaded with every checkpoint"""
    steps: Steps | None = None
    """train until this many steps are done (default: the recipe's)"""
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

    Settings whose default is None are the recipe's, unless their text says otherwise.
    """

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-segmentation, tiny-depth, photo-f8 or another of pipelines/recipes.py"""
    data: Path
    """a folder of images, tar files (WebDataset) or Parquet tables, searched with all its
    sub-folders; or one such file"""
    targets: Path | None = None
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

    Settings whose default is None are the recipe's, unless their text says otherwise.
    """

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """tiny, tiny-local, base, large, ...: see pipelines/recipes.py"""
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
    machine (default: ~/.cache/smalti/shards)"""
    cache_size: Annotated[float, Range(least=0, most=2**20)] = CACHE_BYTES / 2**30
    """GiB of such copies; where a store is larger than a third of it, shuffle within that third"""
    held_out: Share = 0.05
    """share of the images, by key, held out for evaluation"""
    shard: bool = False
    """also shard the weights over the workers (FSDP), for models beyond one GPU"""


def override_recipe(
    recipes: Mapping[str, Recipe], name: str, flags: TrainingFlags, *more: str
) -> Recipe:
    """The recipe `name`, overridden by the flags given: the shared ones and those named in `more`.

    Raises ConfigError where there is no such recipe, or a flag is out of range.
    """
    check_flags(flags)
    if name not in recipes:
        raise ConfigError(f"No recipe {name!r}; there are {', '.join(recipes)}.")
    recipe = recipes[name]
    given: dict[str, Any] = {}
    for field in (*LOOP_FIELDS, "batch_size", *more):
        value = getattr(flags, field)
        if value is not None:
            given[field] = value
    if flags.learning_rate is not None:
        optimizer = dataclasses.replace(recipe.optimizer, learning_rate=flags.learning_rate)
        given["optimizer"] = optimizer
    recipe = dataclasses.replace(recipe, **given)
    _check_division(recipe.batch_size, flags)
    return recipe


def _check_division(batch_size: int, flags: TrainingFlags) -> None:
    """Raise ConfigError unless all workers' micro-batches have equally many samples."""
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers, the number of processes to train there.")
    parts = flags.accumulate * max(1, flags.workers)
    if batch_size % parts:
        raise ConfigError(
            f"A batch of {batch_size} samples does not divide evenly by {parts} (--workers times "
            f"--accumulate). Use --batch-size {-(-batch_size // parts) * parts}, or other numbers."
        )


def parallel_config_of(
    flags: TrainingFlags, ranks: Ranks, device: torch.device, shard: bool = False
) -> ParallelConfig:
    """How a process of `ranks` that trains on `device` computes its steps."""
    return ParallelConfig(
        ranks=ranks,
        accumulate=flags.accumulate,
        compile=device.type == "cuda" if flags.compile == "auto" else flags.compile == "yes",
        precision=resolve_precision(flags.precision, device.type),
        recompute=flags.recompute,
        shard=shard,
    )


def division_of(flags: TrainingFlags, shard: bool = False) -> Division:
    """How batches will be divided, as far as it can be known before the workers start."""
    gpu = flags.device.startswith("cuda") or (flags.device == "auto" and torch.cuda.is_available())
    return Division(
        workers=max(1, flags.workers),
        accumulate=flags.accumulate,
        recompute=flags.recompute,
        shard=shard,
        bfloat16=flags.precision == "bfloat16" or (flags.precision == "auto" and gpu),
    )


def worker_config_of(flags: TrainingFlags) -> WorkerConfig:
    """The worker processes that the flags name."""
    return WorkerConfig(
        workers=flags.workers,
        address=flags.address,
        cpus_per_worker=flags.cpus_per_worker,
        device=flags.device,
        restarts=flags.restarts,
    )


def loop_settings(recipe: TokenizerRecipe | PriorRecipe, flags: TrainingFlags) -> LoopSettings:
    """The training loop's settings of a recipe and the flags."""
    return LoopSettings(
        seed=flags.seed,
        save_minutes=flags.save_minutes,
        skip_non_finite=flags.skip_non_finite,
        **{name: getattr(recipe, name) for name in LOOP_FIELDS},
    )
