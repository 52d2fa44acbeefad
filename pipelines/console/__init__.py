"""The console: what every command shares on a terminal, and the `smalti` command itself.

run.py parses flags, of which path_flags.py has types, and turns errors into one line and an exit
code; progress.py shows progress as a
bar or as log lines; interrupts.py lets a loop finish its step on Ctrl-C or SIGTERM. smalti.py runs
any command of pipelines/ by name. Nothing here depends on images, codes or Ray. Read run.py first.
"""

from pipelines.console.interrupts import interrupts_noted, signal_handlers_kept
from pipelines.console.path_flags import NameOrURI, PathOrURI, SourceOrURI, StorageOptions
from pipelines.console.progress import progress_bar
from pipelines.console.run import PLAIN_ERRORS, plain_message, run_command
from pipelines.console.settings_file import recorded_flags
from pipelines.console.terminal import show, show_error

__all__ = [
    "PLAIN_ERRORS",
    "NameOrURI",
    "PathOrURI",
    "SourceOrURI",
    "StorageOptions",
    "interrupts_noted",
    "plain_message",
    "progress_bar",
    "recorded_flags",
    "run_command",
    "show",
    "show_error",
    "signal_handlers_kept",
]
