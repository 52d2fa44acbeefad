"""ImageWriter: decodes and writes the images of sampled codes while the next batch is sampled."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from ops.files import file_hash
from ops.images import ImageArray
from ops.paths import AnyPath, local_file
from ops.png import write_png_strips
from ops.runtime import num_cores
from pipelines.exporting import image_strips
from pipelines.generation.sample_buffer import Codes
from tokenizer import VQGAN

MOST_THREADS = 8  # of a worker on a GPU
MOST_BYTES = 1 << 26  # of decoded pixels that wait for the writing thread of a worker on a CPU


class ImageWriter:
    """Writes PNGs in threads: on a CPU in one, which compresses and writes what write() decodes.

    On a GPU, images are decoded there, too, on a stream of their own, by one thread at a time and
    strip by strip, and compressed by as many threads as the GPU has cores on its machine.
    """

    def __init__(self, tokenizer: VQGAN, width: int, height: int) -> None:
        self._tokenizer, self._width, self._height = tokenizer, width, height
        self._device = next(tokenizer.parameters()).device
        self._stream: torch.cuda.Stream | None = None
        self._threads = 1
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the weights are there
            self._stream = torch.cuda.Stream(self._device)
            cores = num_cores() // max(1, torch.cuda.device_count())
            self._threads = max(1, min(MOST_THREADS, cores))
        self._pool = ThreadPoolExecutor(self._threads, "image-writer")
        self._decoding = threading.Lock()
        self._futures: set[Future[str]] = set()

    def write(self, path: AnyPath, codes: Codes) -> Future[str]:
        """Begin to write the PNG of codes (h, w); its SHA-256, in hex, is the future's result."""
        if self._stream is not None:
            future = self._pool.submit(self._written, path, self._decoded(codes))
        else:
            strips: Iterable[ImageArray] = self._strips(codes)
            size = 3 * self._width * self._height
            if (len(self._futures) + 1) * size > MOST_BYTES:  # one strip is in memory at a time
                wait(self._futures)
                future = Future()
                future.set_result(self._written(path, strips))
                return future
            future = self._pool.submit(self._written, path, list(strips))
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def cancel(self) -> None:
        """Drop what has not begun, and wait for what has."""
        futures = set(self._futures)
        for future in futures:
            future.cancel()
        wait(futures)

    def _strips(self, codes: Codes) -> Iterator[ImageArray]:
        return image_strips(self._tokenizer, codes, self._width, self._height)

    def _decoded(self, codes: Codes) -> Iterator[ImageArray]:
        """The same, each decoded on the stream while no other thread decodes."""
        strips = self._strips(codes)
        while True:
            with self._decoding, torch.cuda.stream(self._stream):
                strip = next(strips, None)
            if strip is None:
                return
            yield strip

    def _written(self, path: AnyPath, strips: Iterable[ImageArray]) -> str:
        with local_file(path) as file:
            write_png_strips(file, self._width, self._height, strips, threads=self._threads)
            return file_hash(file)
