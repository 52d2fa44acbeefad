"""All stages on photographs: encode, sample and enlarge by the bundled priors, train a small one.

python -m pipelines.demo [--images FOLDER]

Each stage is one of the public commands. Run again, the demo resumes where it stopped, and does
nothing if everything is done.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command
from pipelines.flags import DemoFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(DemoFlags, run, argv, prog="pipelines.demo")


def run(flags: DemoFlags) -> int:
    """Run the stages that are not done; the exit code of the first that fails, else 0."""
    from pipelines.demo_stages import run_stages
    from pipelines.jobs import forked_workers

    with forked_workers():  # of all stages: from the second on, this process has threads
        return run_stages(flags)


if __name__ == "__main__":
    sys.exit(main())
