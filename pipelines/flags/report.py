"""The flags of the report command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from pipelines.console import PathOrURI, StorageOptions


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Write one HTML file, images included, about a training run, a code store or samples.

    Of a code store it shows decoded codes. Next to them it shows the images that were encoded,
    where the store's plan lists them and they are at their paths, with the recorded size, time and
    content; the page names their folders. It contains no other files from outside FOLDER.
    """

    EXAMPLE: ClassVar[str] = "codes.zarr"

    path: Annotated[PathOrURI, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A run, a code store, a folder of samples, or a folder that contains some of these; s3:// and
    gs:// too."""
    out: PathOrURI | None = None
    """The file to write; by default report.html in that folder."""
    originals_by_content: bool = False
    """Show encoded images also where only their content is the recorded one, not their time, as
    after copying them. Leave it out for a store from elsewhere: it may name any file here."""
    storage_option: StorageOptions = ()
