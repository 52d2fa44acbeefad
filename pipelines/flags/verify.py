"""The flags of the verify command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from pipelines.console import PathOrURI, StorageOptions


@dataclass(frozen=True, kw_only=True)
class VerifyFlags:
    """Read a whole code store again: every file against its checksum, every row against the index,
    the index against the plan.

    Prints the file and the rows of everything corrupt or missing, and what to do about it; then the
    exit code is 1. Of a store without problems, prints what the rows were made with: the model of
    the GPU or CPU, the precision and versions, and how many rows each has.
    """

    EXAMPLE: ClassVar[str] = "codes.zarr"

    store: Annotated[PathOrURI, tyro.conf.Positional]
    """The code store, for instance codes.zarr or s3://bucket/codes.zarr."""
    storage_option: StorageOptions = ()
