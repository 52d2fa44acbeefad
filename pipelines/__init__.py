"""Commands and their stages: the only package with data files, Ray jobs and command lines.

Each module here with a `main` is a command (`python -m pipelines.encode`, or `smalti encode`); the
folders are the stages that commands are made of, and recipes.py lists training runs. Codes flow
from inputs and planning through encoding into the store, from there through streaming to training,
and from a trained prior through generation to images. CHANGELOG.md lists what changed. Read
encode.py first: it calls most of the stages.
"""

import importlib.util
import os


def _check_own_packages() -> None:
    """Raise ImportError if another distribution's package shadows one of ours.

    Other distributions install packages called `ops` and `tokenizer` too.
    """
    folder = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in ("ops", "prior", "tokenizer"):
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec is not None else None
        if os.path.realpath(origin or "") != os.path.join(folder, name, "__init__.py"):
            raise ImportError(
                f"`import {name}` finds {origin}, not Smalti's package of that name. Install "
                f"Smalti into a virtual environment without the other, or put {folder} first in "
                "PYTHONPATH."
            )


_check_own_packages()
