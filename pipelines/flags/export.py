"""The flags of the export command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from ops.config import Range
from pipelines.console import PathOrURI, StorageOptions
from pipelines.flags.export_formats import formats_help


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Write the rows of a code store as files that other libraries read.

    Rows that failed, or that newer ones replace, are left out and counted. Labels, keys and further
    tracks are carried over. Run it again to resume, or after the store has grown.
    """

    EXAMPLE: ClassVar[str] = "store codes.zarr --to webdataset --out tars/"

    kind: tyro.conf.Positional[Annotated[Literal["store"], tyro.conf.arg()]]
    """what is exported"""
    store: tyro.conf.Positional[Annotated[PathOrURI, tyro.conf.arg(metavar="STORE")]]
    """the code store, for instance codes.zarr or s3://bucket/codes.zarr"""
    to: Annotated[str, tyro.conf.arg(help=formats_help())]
    out: PathOrURI
    """the folder to create, or to go on with; s3:// and gs:// too"""
    workers: Annotated[int, Range(least=0, most=2**16)] = 0
    """Ray actors that export; 0 exports in one child process. Both give the same bytes"""
    cpus_per_worker: Annotated[int, Range(least=1, most=1024)] | None = None
    """CPU cores per actor (default: --threads)"""
    address: str | None = None
    """address of a running Ray cluster, whose nodes must see STORE and --out"""
    device: str = "auto"
    """for images: auto, cpu, cuda or cuda:N (without --workers), which decodes; recorded"""
    threads: Annotated[int, Range(least=1, most=1024)] = 1
    """for images: CPU threads per worker; affects rounding, so it is recorded"""
    storage_option: StorageOptions = ()
