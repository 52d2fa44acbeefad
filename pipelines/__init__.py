"""Commands and their stages: data files, Ray jobs and command lines; imports all other packages."""

import importlib.util
import os

__version__ = "0.2.0"


def _check_own_packages() -> None:
    """Raise ImportError if another distribution's package shadows one of ours.

    Other distributions install packages called `ops` and `tokenizer` too.
    """
    folder = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in ("ops", "prior", "tokenizer"):
        spec = importlib.util.find_spec(name)
        origin = os.path.realpath(spec.origin) if spec is not None and spec.origin else None
        if origin != os.path.join(folder, name, "__init__.py"):
            raise ImportError(
                f"`import {name}` finds {origin or 'nothing'}, not Smalti's own package in "
                f"{folder}: another distribution uses the name. Install Smalti into a virtual "
                f"environment without it, or put {folder} first in PYTHONPATH."
            )


_check_own_packages()
