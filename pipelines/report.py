"""Write `report.html`, one page about a folder with all its images inside.

python -m pipelines.report RUN|STORE|SAMPLES|FOLDER
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import ReportFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(ReportFlags, run, argv, prog="pipelines.report")


def run(flags: ReportFlags) -> int:
    from ops.paths import join, write_whole
    from pipelines.reports import render_page

    out = join(flags.path, "report.html") if flags.out is None else flags.out
    page = render_page(flags.path, flags.originals_by_content)
    write_whole(out, page.encode())
    show(f"{out}: {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
