"""?"""

from pipelines.streaming.dataset import CodeDataset
from pipelines.streaming.order import KeyedOrder
from pipelines.streaming.sources import check_tokenizer

__all__ = [
    "CodeDataset",
    "KeyedOrder",
    "check_tokenizer",
]
