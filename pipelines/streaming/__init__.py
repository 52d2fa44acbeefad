"""Code stores as batches for training.

CodeDataset (dataset.py, read it first) opens stores and makes the batch of any step: rows of codes
with labels and tracks, cut to windows, in an order (order.py) that is a function of (seed, step).
sources.py decides which rows of a store are trained on, tracks.py what else a batch holds;
prefetch.py copies the shards of stores in object stores before they are read.
CodeStream (iterable.py) is the same as a torch IterableDataset, for any other training loop:
resumable, safe under DataLoader workers and ranks.
"""

from pipelines.streaming.dataset import CodeDataset
from pipelines.streaming.iterable import CodeStream
from pipelines.streaming.order import KeyedOrder
from pipelines.streaming.sources import DatasetError, check_tokenizer

__all__ = [
    "CodeDataset",
    "CodeStream",
    "DatasetError",
    "KeyedOrder",
    "check_tokenizer",
]
