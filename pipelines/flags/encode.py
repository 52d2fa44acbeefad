"""The flags of the encode command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from ops.config import ConfigError, Count, Range, Seed, Share
from pipelines.console import NameOrURI, PathOrURI, SourceOrURI, StorageOptions
from pipelines.flags.flag_types import STALL_TIMEOUT, Accept, stall_seconds


@dataclass(frozen=True, kw_only=True)
class EncodeFlags:
    """Encode images into a code store that zarr.open and pyarrow.parquet read.

    Run it again to resume, or with more images in the folder to add them. Images that cannot be
    read are listed with the reason, here and in the store's index. EXIF orientation is applied, an
    embedded colour profile is converted to sRGB (relative colorimetric, with black point
    compensation; one that is broken is noted), alpha is composited on white, and of an animation
    the first frame is taken. A store that was begun by a version without this is not extended.
    """

    EXAMPLE: ClassVar[str] = "--in imgs/ --out codes.zarr"

    in_: Annotated[tuple[SourceOrURI, ...], tyro.conf.arg(name="in")]
    """Folder of images, tar files (WebDataset) or Parquet tables, searched recursively; or one
    such file; or a list of paths, absolute or relative to its folder (CSV, JSONL, or Parquet
    without images; the column file, path, file_name, image or the like). Several may be named, also
    as a brace list, 'data-{000..099}.tar', or a glob, 'shards/*.parquet'. All of these also at
    s3://BUCKET/NAME, gs://BUCKET/NAME and hf://datasets/OWNER/NAME, and single files at
    https://HOST/NAME; tars and tables are read there by ranges. In a tar file,
    7.depth.png is a field of the sample with the image 7.jpg and is not encoded, if its further
    name is a word of letters; v1.5.png is an image of its own, and so is 7.depth.png where there is
    no 7.jpg. What is not encoded is named or counted."""
    out: PathOrURI
    """The code store to create or extend, for instance codes.zarr or s3://bucket/codes.zarr."""
    tokenizer: NameOrURI = "photo-f8"
    """Name of a bundled tokenizer, or a model or run folder, also at s3:// and gs://."""
    image_size: Annotated[int, Range(least=1, most=2**16)] = 256
    """Side of the encoded image in pixels; with --crop native its short side."""
    crop: Literal["center", "random", "ten", "native"] = "center"
    """center: the middle square. random: one square placed by --seed and the image's name. ten:
    four corners, the middle, and their mirrors. native: the whole image, aspect kept (at most
    4:1), one array for each grid shape."""
    flip: Literal["none", "both"] = "none"
    """both: encode each view mirrored, too; --crop ten includes mirrored views already."""
    seed: Seed = 0
    """For --crop random: the crop depends only on this and the image's name."""
    labels: Literal["none", "first", "last", "field"] = "none"
    """first: the first folder below --in is an image's class. last: the folder it lies in. field:
    the field cls of its sample in a tar file, or of the sample's JSON, or the column label of its
    Parquet table or list (cls, class and label are looked for in all of them). Of a column that a
    data set hub describes as a ClassLabel the names are taken."""
    image_column: str | None = None
    """Column of tables with the images, and of lists with their paths, where there are several."""
    label_column: str | None = None
    """Column of tables and lists, or field of a tar sample's JSON, with the classes; it implies
    --labels field."""
    carry: str = "all"
    """Columns that go into the index with an image: all, none, or names with commas between. Of
    tables and lists the columns of numbers, text and booleans, of tar samples the fields of their
    JSON. A caption (caption, text or .txt) has the column caption of the index, the others are a
    JSON object in its column carried."""
    min_size: Annotated[int, Range(least=1, most=2**16)] | None = None
    """Leave out images whose short side has fewer pixels, by their headers. What is left out, here
    and by the next flags, is counted, and listed in _sources/left_out.parquet of the store. An
    image that the store has already stays there."""
    max_aspect: Annotated[float, Range(least=1, most=2**16)] | None = None
    """Leave out images whose long side is more than so many times the short one."""
    where: str | None = None
    """Leave out images for which this does not hold, for instance 'score >= 5 and caption is not
    null'. Columns are those that are carried, key, caption and label. There are == != < <= > >=,
    in, not in, is null, and, or, not, "text" in COLUMN, and col("any name")."""
    skip_duplicates: bool = False
    """Of images with the same bytes encode the one that is planned first. It costs a read of 4 KiB
    of each new image that has the size of another one, and of the whole of those that agree there;
    a Parquet table is read whole."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE, once for each further track of rows aligned with the images'. segmentation=DIR,
    depth=DIR or any other name: a folder of files named like the images. low_res=RATIO: the images
    shrunk and enlarged again; low_res=RATIO,artefacts: half of them with noise and half of them
    with JPEG artefacts, for priors that enlarge what others generate. boxes=FILE: JSONL, one line
    per box, {"file", "category", "bbox": [x, y, width, height]} in pixels. keypoints=FILE: JSONL,
    one line per person, {"file", "keypoints": [[x, y, visible], ...]}. class=FILE: JSONL or CSV of
    {"file", "class"}. Tracks that the store has already are updated in every run."""
    track_tokenizer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=DIR: the model or run folder of a track's tokenizer; needed in its first run only."""
    batch_size: Count | Literal["auto"] = "auto"
    """Images per forward pass; fixed when the store is made. auto: on a GPU as many as a worker
    finds room for there, a power of two, at most 64 of 256 pixels."""
    rows_per_task: Count | Literal["auto"] = "auto"
    """Rows per shard file; fixed when the store is made."""
    compress: bool = False
    """For archives: codes are compressed to about their entropy, but reading is slower."""
    by_content: bool = False
    """Detect changed images by reading all their bytes instead of by size and time."""
    retry_failed: bool = False
    """Retry images that failed, even if they have not changed."""
    prune: bool = False
    """Hide the rows of images that are no longer in --in; without this they stay visible."""
    threads: Annotated[int, Range(least=1, most=1024)] | Literal["auto"] = "auto"
    """CPU threads per forward pass; fixed when the store is made. auto is 1: several passes run in
    parallel instead."""
    convolution: Literal["auto", "direct", "nnpack"] = "auto"
    """nnpack: about twice as fast on most CPUs, with different rounding; fixed when the store is
    made. auto uses it where this machine has it and a forward pass has one thread."""
    decoder: Literal["pillow", "nvjpeg"] = "pillow"
    """Of plain colour JPEG (baseline or progressive, upright, without a colour profile): nvjpeg
    decodes and resizes it on the GPU, with pixels that differ by rounding; all other files are
    decoded by Pillow. Fixed when the store is made. nvjpeg has not been run on a GPU yet."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the encoder, which takes a minute in every worker and rounds otherwise; fixed when
    the store is made. auto: on GPUs, for stores begun with 50,000 images or more. Of --crop native
    the aspects 1:1, 4:3 and 3:2 are compiled."""
    workers: Annotated[int, Range(least=0, most=2**16)] = 0
    """Ray actors that are wanted to encode: those that fit start, others when nodes join the
    cluster. 0 encodes in one child process. Both give the same bytes."""
    cpus_per_worker: Annotated[int, Range(least=1, most=1024)] | Literal["auto"] = "auto"
    """CPU cores per actor; on a GPU each has a thread that decodes images. auto: on GPUs the cores
    of a node divided by its GPUs, else 1. Without --workers all cores of this machine are used."""
    gpus_per_worker: Annotated[float, Range(least=0, most=1024)] | Literal["auto"] = "auto"
    """GPUs, or a fraction of one, per actor; auto is 1 on a GPU, else 0."""
    address: str | None = None
    """Address of a running Ray cluster, whose nodes must see --in and --out under the same paths;
    without it --workers starts a local Ray. The driver itself needs no GPU."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N (without --workers), of the workers; its kind is fixed when the
    store is made. auto: a GPU where the cluster, or without --workers this machine, has one."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Of the encoder's products; fixed when the store is made. auto: float32 on a CPU, tf32 on a
    GPU. A CPU has no tf32 and takes float32. bfloat16 is fastest, and changes the most codes. The
    nearest code is always searched in float32. On one model of GPU, with the same versions of torch
    and cuDNN, the same precision and batch size, codes are the same bit for bit; on other models or
    versions a small share of them differs."""
    accept: Accept = ()
    """Go on with a store that was begun on another kind of device (GPU or CPU), in another
    precision or by another version of torch: its new codes are then rounded otherwise. The index
    records for all rows what they were made with, down to the model of the GPU; verify and report
    show it."""
    allow_mixed: bool = False
    """The same as --accept with everything it can name."""
    stall_timeout: str = STALL_TIMEOUT
    """Seconds, or 90s, 10m, 1.5h: a worker that makes no progress for so long is killed and its
    task tried again. An image that stalls every time is recorded with the reason stalled. More than
    it takes to read an image, and on a GPU to compile the encoder."""
    max_bad: Share = 0.5
    """Exit with code 1 if a larger share of the images has failed."""
    storage_option: StorageOptions = ()

    @property
    def labels_from(self) -> str:
        """--labels, or what --label-column implies."""
        return "field" if self.label_column is not None else self.labels


def check_encode_flags(flags: EncodeFlags) -> None:
    """Raise ConfigError for flags that contradict each other or are out of range."""
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers: the number of actors to start there.")
    stall_seconds(flags.stall_timeout)
    if flags.labels_from != "none" and any(track.startswith("class=") for track in flags.track):
        raise ConfigError(
            f"--labels {flags.labels_from} gives classes, and so does --track class. Ask for one "
            "of them."
        )
    if flags.label_column is not None and flags.labels not in ("none", "field"):
        raise ConfigError(
            f"--label-column names a column, but --labels {flags.labels} takes folders as classes. "
            "Leave one of them out."
        )
