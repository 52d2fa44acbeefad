"""Encoding: planned rows of images, or of files that belong to them, to committed shards of codes.

`EncodeWorker` does one task: threads read and decode files, a tokenizer encodes full batches, and
the rows are committed to the store as a whole. `EncodeFlags` are the command's flags and
`plan_settings` the settings that a store is made with. Read worker.py first, then batches.py.
"""

from pipelines.encoding.flags import EncodeFlags, check_flags
from pipelines.encoding.settings import check_same, plan_settings
from pipelines.encoding.sources import (
    IMAGE_COLUMNS,
    NO_IMAGE,
    NO_PARTNER,
    SEVERAL_PARTNERS,
    Row,
    check_image,
    check_partner,
)
from pipelines.encoding.worker import EncodeWorker, quarantine

__all__ = [
    "EncodeFlags",
    "EncodeWorker",
    "IMAGE_COLUMNS",
    "NO_IMAGE",
    "NO_PARTNER",
    "Row",
    "SEVERAL_PARTNERS",
    "check_flags",
    "check_image",
    "check_partner",
    "check_same",
    "plan_settings",
    "quarantine",
]
