"""A folder on one page: `report.html`, with its pictures inside, to look at or to send.

python -m pipelines.report RUN|STORE|SAMPLES|FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jinja2
import tyro

from ops.files import atomic_path
from pipelines.console import run_command
from pipelines.reports import sections_of

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Write one HTML file about a training run, a code store or samples, pictures inside."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A run, a code store, a folder of samples, or a folder that holds some of these."""
    out: Path | None = None
    """The file to write; by default report.html in that folder."""


def main(argv: list[str] | None = None) -> int:
    return run_command(Flags, run, argv, prog="pipelines.report")


def run(flags: Flags) -> int:
    out = flags.path / "report.html" if flags.out is None else flags.out
    page = render(flags.path)
    with atomic_path(out) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"{out}: {len(page) / 1e6:.1f} MB")
    return 0


def render(path: Path) -> str:
    """The page about `path`; ReportError where there is nothing to tell."""
    sections = sections_of(path)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("report.html").render(
        title=f"Smalti: {path.resolve().name}", subtitle=f"Made of {path}", sections=sections
    )


if __name__ == "__main__":
    sys.exit(main())
