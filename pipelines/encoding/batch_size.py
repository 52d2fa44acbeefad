"""fitting_batch_size: how many images fit into the memory of a worker's GPU, measured by a worker.

Not by the driver, which may have no GPU, or another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from ops.device_memory import SHARE, CudaMemory, DeviceMemory, fitting_size
from ops.images import MAX_ASPECT, Transform
from ops.precision import Precision, check_precision, use_precision
from ops.runtime import compute_repeatably, resolve_device
from pipelines.encoding.forward import EncoderForward
from pipelines.encoding.sources import Size
from pipelines.flags import EncodeFlags
from pipelines.jobs import WorkerDevices, gpus_of_worker, run_tasks
from tokenizer import VQGAN, VQGANConfig

REMEDY = "Use a GPU with more memory, or a smaller --image-size."


class BatchSizer:
    """Finds on one device the largest batch that an encoder of some config fits there with.

    `size` is the (height, width) of its images, and `share` the part of the free memory that a
    batch may take. The weights are random, since memory does not depend on them, and the encoder is
    not compiled: compiled it takes less.
    """

    def __init__(
        self,
        config: VQGANConfig,
        device: str,
        precision: Precision,
        size: Size,
        share: float,
        memory_of: Callable[[torch.device], DeviceMemory] = CudaMemory,
    ) -> None:
        compute_repeatably()
        use_precision(precision)
        self._device = resolve_device(device)
        tokenizer = VQGAN(config).eval().requires_grad_(False).to(self._device)
        self._forward = EncoderForward(tokenizer, precision)
        self._image = (config.autoencoder.image_channels, *size)
        self._memory, self._share = memory_of(self._device), share

    def run(self, most: int) -> int:
        """The largest power of two, at most `most`; DeviceMemoryError where one image does not
        fit."""
        return fitting_size(self._memory, self._encode, most=most, share=self._share, remedy=REMEDY)

    def _encode(self, count: int) -> None:
        with torch.inference_mode():
            self._forward(torch.zeros((count, *self._image), device=self._device))


def fitting_batch_size(
    flags: EncodeFlags,
    devices: WorkerDevices,
    config: VQGANConfig,
    transform: Transform,
    environment: Mapping[str, str],
    most: int,
) -> int:
    """The largest power of two, at most `most`, of images that a worker's GPU has memory for.

    Native crops are taken for as large as the largest. Raises DeviceMemoryError where one image
    does not fit, and what run_tasks raises.
    """
    devices.connect()
    device = devices.resolve(environment["device"], flags.gpus_per_worker)
    gpus = gpus_of_worker(flags.gpus_per_worker, device)
    share = SHARE * min(1.0, gpus) if flags.workers else SHARE  # workers may share a GPU
    found: list[int] = []
    run_tasks(
        [most],
        partial(
            BatchSizer,
            config,
            device,
            check_precision(environment["precision"]),
            transform.target_size(MAX_ASPECT, 1),
            share,
        ),
        on_result=lambda _, size: found.append(size),
        workers=min(1, flags.workers),
        gpus_per_worker=gpus,
        address=flags.address,
    )
    return found[0]
