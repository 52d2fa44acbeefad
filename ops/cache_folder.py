"""The folder of this machine's copies of objects, and of what is made here to be uploaded."""

from __future__ import annotations

import os
from pathlib import Path

#: The environment variable that names another one; child processes and workers have it too.
CACHE_VARIABLE = "SMALTI_CACHE"
DEFAULT = "~/.cache/smalti"
SHARDS = "shards"  # of code stores, with their tokenizers


def cache_folder(*names: str) -> Path:
    """A folder below $SMALTI_CACHE, else below ~/.cache/smalti; it need not exist."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT).expanduser().joinpath(*names)
