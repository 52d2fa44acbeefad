"""?"""

from pipelines.encoding.settings import EncodeFlags, check_same, plan_settings
from pipelines.encoding.sources import (
    IMAGE_COLUMNS,
    NO_IMAGE,
    NO_PARTNER,
    SEVERAL_PARTNERS,
    Row,
    check_image,
    check_partner,
)
from pipelines.encoding.worker import Done, EncodeWorker, Piece, quarantine, split_work

__all__ = [
    "Done",
    "EncodeFlags",
    "EncodeWorker",
    "IMAGE_COLUMNS",
    "NO_IMAGE",
    "NO_PARTNER",
    "Piece",
    "Row",
    "SEVERAL_PARTNERS",
    "check_image",
    "check_partner",
    "check_same",
    "plan_settings",
    "quarantine",
    "split_work",
]
