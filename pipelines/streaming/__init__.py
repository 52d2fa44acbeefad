"""?"""

from pipelines.streaming.dataset import CodeDataset
from pipelines.streaming.order import KeyedOrder
from pipelines.streaming.sources import check_tokenizer
from pipelines.streaming.tracks import TRACK_CONDITIONS, open_tracks

__all__ = [
    "CodeDataset",
    "KeyedOrder",
    "TRACK_CONDITIONS",
    "check_tokenizer",
    "open_tracks",
]
