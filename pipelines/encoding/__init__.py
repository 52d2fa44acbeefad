"""Encoding: planned rows of images, or of files that belong to them, to committed shards of codes.

A worker does one task: threads read and decode files, a tokenizer encodes full batches, and
the rows are committed to the store as a whole. `encode_tasks` runs tasks of one track in this
process or on Ray actors. `plan_settings` are the settings that a store is made with. Read worker.py
first, then batches.py.
"""

from pipelines.encoding.batch_size import fitting_batch_size
from pipelines.encoding.job import encode_tasks
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

__all__ = [
    "IMAGE_COLUMNS",
    "NO_IMAGE",
    "NO_PARTNER",
    "Row",
    "SEVERAL_PARTNERS",
    "check_image",
    "check_partner",
    "check_same",
    "encode_tasks",
    "fitting_batch_size",
    "plan_settings",
]
