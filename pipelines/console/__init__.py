"""?"""

from pipelines.console.interrupts import interrupts_noted
from pipelines.console.progress import progress_bar
from pipelines.console.run import PLAIN_ERRORS, run_command

__all__ = [
    "PLAIN_ERRORS",
    "interrupts_noted",
    "progress_bar",
    "run_command",
]
