"""plan_memory: batch size and memory of the KV caches for sampling on a GPU, by its total memory.

Computed from the sizes of the model alone, so that a driver without a GPU can plan for its workers
and every GPU of a kind gets the same plan: both numbers affect the rounding of logits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ops.meta_device import on_meta_device
from ops.precision import Precision
from ops.windows import Grid
from prior.models import GPTConfig, LocalConfig, PriorConfig, make_model, neighbour_offsets
from prior.sampling.generation_config import DEFAULT_CACHE_MEMORY, LARGEST_DEFAULT_BATCH
from prior.sampling.local import parallel_rows_for
from prior.sampling.sliding_window import SEQUENCES_AT_ONCE

SHARE = 0.8  # of the GPU's memory; the rest is for the driver, libraries and fragments
RESERVED = 2 << 30  # bytes, for the tokenizer and the image that it decodes
LARGEST_BATCH = 64  # on a GPU: a worker that is killed loses about as many samples
DRAWING_COPIES = 10  # of a row of float64 probabilities, while a code is drawn
CELL_BYTES = 32  # of a sequence's tokens, uniform numbers, log-probabilities and known cells
CUDA = torch.device("cuda")


class MemoryPlan(NamedTuple):
    """What to sample with."""

    batch_size: int  # samples
    cache_memory: int  # bytes, whole GiB where there are any


def plan_memory(
    config: PriorConfig,
    memory: int,
    *,
    shape: tuple[int, int],
    stride: int | None,
    guides: bool,
    precision: Precision,
    count: int,
) -> MemoryPlan:
    """The largest batch, a power of two or `count` samples, that fits into `memory` bytes.

    `shape` are the rows and columns of a canvas. What is left is for the caches of windows. The
    plan has one sample where not even that fits, and the usual defaults for a PixelSNAIL.
    """
    if not isinstance(config, GPTConfig | LocalConfig):
        return MemoryPlan(min(count, LARGEST_DEFAULT_BATCH), DEFAULT_CACHE_MEMORY)
    element = 2 if precision == "bfloat16" else 4
    weights, of_head = _weights(config)
    weights = element * weights + (4 - element) * of_head
    available = int(SHARE * memory) - RESERVED - weights

    def left(batch: int) -> int:
        """Bytes that a batch leaves of what is available, besides the caches of windows."""
        sequences = batch * (2 if guides else 1)
        cells = CELL_BYTES * sequences * shape[0] * shape[1]
        logits = max(config.code_levels, default=config.codebook_size)  # of a code or one level
        drawing = 8 * DRAWING_COPIES * logits * _at_once(sequences)
        return available - cells - drawing - _step_bytes(config, sequences, shape, element)

    def fits(batch: int) -> bool:
        sequences = batch * (2 if guides else 1)
        return left(batch) >= _fewest_cache_bytes(config, sequences, shape, stride, element)

    batch = 1
    while batch < min(count, LARGEST_BATCH) and fits(2 * batch):
        batch *= 2
    batch = min(batch, count)
    free = max(left(batch), 0)
    return MemoryPlan(batch, free >> 30 << 30 or free)


@lru_cache(maxsize=8)
def _weights(config: PriorConfig) -> tuple[int, int]:
    """Numbers of weights, of all and of the head, which stays in float32."""
    with on_meta_device():
        model = make_model(config)
    parts = (model, model.head)
    every, head = (sum(weight.numel() for weight in part.parameters()) for part in parts)
    return every, head


def _at_once(sequences: int) -> int:
    """About how many cells of all sequences a step draws at most."""
    return max(sequences, SEQUENCES_AT_ONCE["cuda"])


def _token_bytes(config: GPTConfig | LocalConfig, element: int) -> int:
    """Bytes of one token's keys and values in one layer."""
    return 2 * config.width * element


def _step_bytes(
    config: GPTConfig | LocalConfig, sequences: int, shape: tuple[int, int], element: int
) -> int:
    """What one step gathers for the attention of a layer, and the rows that a LocalGPT keeps."""
    token = _token_bytes(config, element)
    if isinstance(config, GPTConfig):
        return _at_once(sequences) * (config.condition_length + config.window**2) * token
    parallel_rows = parallel_rows_for(shape[1], config.radius, sequences, CUDA)
    slots = 1 + config.condition_length + (parallel_rows + config.radius) * (shape[1] + 1)
    near = config.condition_length + len(neighbour_offsets(config.radius))
    return sequences * token * (config.num_layers * slots + parallel_rows * near)


def _fewest_cache_bytes(
    config: GPTConfig | LocalConfig,
    sequences: int,
    shape: tuple[int, int],
    stride: int | None,
    element: int,
) -> int:
    """The caches of windows with which no window of a row is read again."""
    if isinstance(config, LocalConfig):
        return 0
    grid = Grid(*shape, config.window, stride or config.default_stride)
    caches = 1 if grid.stride == 1 else -(-grid.window // grid.stride)
    length = config.condition_length + min(config.window, shape[0]) * min(config.window, shape[1])
    return caches * sequences * length * config.num_layers * _token_bytes(config, element)
