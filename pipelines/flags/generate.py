"""The flags of the generate command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from ops.config import Count, Range, Seed
from pipelines.console import PathOrURI, StorageOptions
from pipelines.flags.condition_notes import sampling_help
from pipelines.flags.flag_types import STALL_TIMEOUT, Accept


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Generate images with a prior, any number of them, by any number of workers.

    Run it again to resume, or with a larger --count for more. The folder `index` has a line for
    each sample, to be read by pyarrow.parquet; generation.json has the settings that decide them.
    """

    EXAMPLE: ClassVar[str] = "--prior runs/prior --out samples/ --count 4 --size 256x256"

    out: PathOrURI
    """the folder of samples to create or extend; s3:// and gs:// too"""
    prior: PathOrURI | None = None
    """the run folder that pipelines.train_prior wrote, which has the tokenizer too, or the name of
    a bundled prior (default: clothing, where it is bundled, and photo-upscale4 as --upscale)"""
    upscale: PathOrURI | None = None
    """a prior with the condition low_res, by name or folder: --prior samples each image whole, in
    one window, and this one enlarges it, again and again up to --size"""
    upscale_temperature: float | None = None
    """sampling temperature of --upscale (default: what it recommends, else 1)"""
    upscale_top_p: float | None = None
    """top-p of --upscale (default: what it recommends, else no limit)"""
    count: Annotated[int, Range(least=1, most=10**10)] | None = None
    """number of samples in the folder (default: that of the folder, or of the images of
    --condition low_res, else 4)"""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, any size; larger ones are sampled with a sliding window (default:
    that of the folder; or the size on which the prior was trained, with --condition low_res that of
    the images enlarged by the prior's ratio; with --upscale, enlarged once more)"""
    seed: Seed = 0
    """random seed: another seed gives other images"""
    save: tuple[str, ...] = ("images",)
    """what to write, as images,codes: images (sample-00000.png, ... and grid.png), codes (a
    code store, codes.zarr, whose row k is sample k), tars (WebDataset tars)"""
    stride: int | None = None
    """step of the sliding window in codes; 1 is slowest and most exact (default: half a window);
    not for priors without a window"""
    batch_size: Count | None = None
    """samples per batch (default: count, at most 8; on a GPU what fits its memory, at most 64);
    affects rounding, so it is recorded. A worker samples whole batches"""
    samples_per_task: Count | Literal["auto"] = "auto"
    """samples per task, a multiple of the batch size: a task has one tar, one shard of codes and
    one index file; recorded in the folder"""
    only: int | None = None
    """generate only the sample with this number, 0 for the first"""
    labels: tuple[str, ...] = ()
    """classes, by name or number, as 3,7 or as lake wood, assigned to the samples in turn"""
    condition: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help=sampling_help())
    ] = ()
    temperature: float | None = None
    """sampling temperature: below 1 favours probable codes; 0 always takes the most probable. The
    default of this and the next flags is what the prior's config.json recommends, else 1, no
    limits, and no guidance"""
    top_k: int | None = None
    """draw from the k most probable codes only"""
    top_p: float | None = None
    """draw from the most probable codes that together have this probability"""
    min_p: float | None = None
    """draw from the codes with at least this share of the most probable code's probability"""
    guidance_scale: float | None = None
    """classifier-free guidance: above 1 follows labels and conditions more closely; doubles the
    work"""
    guidance_schedule: Literal["constant", "power-cosine"] | None = None
    """power-cosine: guidance rises from none at a window's first code to the full scale at its
    last"""
    guidance_power: float | None = None
    """for power-cosine: the higher, the later guidance rises"""
    cache_memory: Annotated[float, Range(least=0, most=2**20)] | Literal["auto"] = "auto"
    """GiB of KV caches per worker; with less, more is recomputed. Affects rounding, so it is
    recorded. auto: 4, on a GPU what a batch leaves of its memory"""
    keep_rows: Count | Literal["auto"] = "auto"
    """rows of codes after which the rows done so far are saved, so that a killed run resumes there;
    best a multiple of the window. Affects rounding, except for priors without a window. auto:
    several windows, on canvases of a megapixel and more"""
    preview: bool = False
    """write preview.png of the current sample every few seconds"""
    retry_failed: bool = False
    """retry samples that are recorded as crashed or stalled because of what became of their
    workers"""
    accept: Accept = ()
    """go on with a folder that was begun on another kind of device (GPU or CPU), in another
    precision or by another version of torch: the new samples are then rounded otherwise; the index
    records for all samples what they were made with, down to the model of the GPU"""
    allow_mixed: bool = False
    """the same as --accept with everything it can name"""
    workers: Annotated[int, Range(least=0, most=2**16)] = 0
    """Ray actors that are wanted to generate: those that fit start, others when nodes join the
    cluster. 0 generates in one child process. Both give the same bytes"""
    cpus_per_worker: Annotated[int, Range(least=1, most=1024)] | None = None
    """CPU cores per actor (default: --threads)"""
    gpus_per_worker: Annotated[float, Range(least=0, most=1024)] | Literal["auto"] = "auto"
    """GPUs, or a fraction of one, per actor; auto is 1 on a GPU, else 0"""
    address: str | None = None
    """address of a running Ray cluster; --prior and --out must be visible to all its nodes; the
    driver itself needs no GPU"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N (without --workers), of the workers; its kind is recorded. auto: a
    GPU where the cluster, or without --workers this machine, has one"""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """of the products of the prior and of the decoder; recorded. auto: float32 on a CPU, bfloat16
    on a GPU, where the decoder of pixels then runs in tf32. A CPU has no tf32 and takes float32.
    Codes are drawn from float32 logits. On one model of GPU, with the same versions of torch and
    cuDNN, samples are the same bit for bit; on other models or versions they are other samples of
    the same distribution"""
    threads: Annotated[int, Range(least=1, most=1024)] = 1
    """CPU threads per worker; affects rounding, so it is recorded"""
    stall_timeout: str = STALL_TIMEOUT
    """seconds, or 90s, 10m, 1.5h: a worker that makes no progress for so long is killed and its
    task tried again. A sample that stalls every time is recorded as stalled"""
    storage_option: StorageOptions = ()
