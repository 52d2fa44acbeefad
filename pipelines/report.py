"""Write `report.html`, one page about a folder with all its images inside.

python -m pipelines.report RUN|STORE|SAMPLES|FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ops.files import write_bytes
from pipelines.console import run_command, show
from pipelines.reports import render_page


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Write one HTML file, images included, about a training run, a code store or samples."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A run, a code store, a folder of samples, or a folder that contains some of these."""
    out: Path | None = None
    """The file to write; by default report.html in that folder."""


def main(argv: list[str] | None = None) -> int:
    return run_command(Flags, run, argv, prog="pipelines.report")


def run(flags: Flags) -> int:
    out = flags.path / "report.html" if flags.out is None else flags.out
    page = render_page(flags.path)
    write_bytes(out, page.encode())
    show(f"{out}: {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
