"""Write `report.html`, one page about a folder with all its images inside.

python -m pipelines.report RUN|STORE|SAMPLES|FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from ops.paths import join, write_whole
from pipelines.console import PathOrURI, StorageOptions, run_command, show
from pipelines.reports import render_page


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Write one HTML file, images included, about a training run, a code store or samples.

    Of a code store it shows decoded codes. Next to them it shows the images that were encoded,
    where the store's plan lists them and they are at their paths, with the recorded size, time and
    content; the page names their folders. It contains no other files from outside FOLDER.
    """

    path: Annotated[PathOrURI, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A run, a code store, a folder of samples, or a folder that contains some of these; s3:// and
    gs:// too."""
    out: PathOrURI | None = None
    """The file to write; by default report.html in that folder."""
    originals_by_content: bool = False
    """Show encoded images also where only their content is the recorded one, not their time, as
    after copying them. Leave it out for a store from elsewhere: it may name any file here."""
    storage_option: StorageOptions = ()


def main(argv: list[str] | None = None) -> int:
    return run_command(Flags, run, argv, prog="pipelines.report")


def run(flags: Flags) -> int:
    out = join(flags.path, "report.html") if flags.out is None else flags.out
    page = render_page(flags.path, flags.originals_by_content)
    write_whole(out, page.encode())
    show(f"{out}: {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
