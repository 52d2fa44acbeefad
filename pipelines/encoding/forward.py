"""EncoderForward: the codes of pixels, on a GPU computed by a compiled encoder."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor

from ops.config import ConfigError
from ops.images import Transform
from ops.precision import Precision
from pipelines.encoding.sources import Size
from tokenizer import VQGAN

#: Of a GPU's weights and pixels. channels_last only where a profile of the kernels shows that it
#: pays; the compiler chooses a layout of its own.
GPU_LAYOUT = torch.contiguous_format
#: Aspects (width, height) of cameras. Of native crops only these are compiled: each size takes
#: the compiler a minute.
COMPILED_ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3))


def compiled_sizes(transform: Transform) -> frozenset[Size]:
    """The sizes (height, width) of views for which an encoder is compiled.

    They follow from the transform alone: another choice, such as the most frequent sizes, would
    change with the images, and the rounding of codes with it.
    """
    return frozenset(transform.target_size(width, height) for width, height in COMPILED_ASPECTS)


class EncoderForward:
    """A tokenizer's codes of pixels, with a compiled encoder for pixels of the sizes `compiled`.

    The tokenizer stays as it is: the compiled encoder has the same tensors.
    """

    def __init__(
        self, tokenizer: VQGAN, precision: Precision, compiled: Collection[Size] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.precision: Precision = precision
        self.device = next(tokenizer.parameters()).device
        if self.device.type == "cuda":
            tokenizer.to(memory_format=GPU_LAYOUT)
        self._compiled_sizes = frozenset(compiled)
        self._compiled = _with_compiled_encoder(tokenizer) if compiled else tokenizer

    def __call__(self, pixels: Tensor) -> Tensor:
        """Codes (B, h, w) of pixels (B, C, H, W) on the device, which is not waited for.

        As VQGAN.encode without its check: a cell may have the code NO_CODE. Raises ConfigError
        where the encoder cannot be compiled.
        """
        if pixels.device.type == "cuda":
            pixels = pixels.contiguous(memory_format=GPU_LAYOUT)
        if (pixels.shape[2], pixels.shape[3]) not in self._compiled_sizes:
            return self.tokenizer.encode(pixels, check=False, precision=self.precision)
        try:
            return self._compiled.encode(pixels, check=False, precision=self.precision)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).partition("\n\n")[0].split())
            raise ConfigError(
                f"torch.compile cannot compile the encoder here: {reason}. Mend that, or make the "
                "store with --compile no."
            ) from error


def _with_compiled_encoder(tokenizer: VQGAN) -> VQGAN:
    """The same tokenizer, its tensors shared, with a compiled encoder."""
    tensors = (*tokenizer.parameters(), *tokenizer.buffers())
    compiled = copy.deepcopy(tokenizer, {id(tensor): tensor for tensor in tensors})
    # Static shapes: every batch is full. Without fullgraph the compiler would compute what it
    # cannot compile by other kernels, without a word.
    compiled.encoder.compile(dynamic=False, fullgraph=True, options=_repeatable())
    return compiled


def _repeatable() -> dict[str, str | int | bool]:
    """Options with which every process compiles the same kernels.

    Otherwise the compiler times several, reductions with other sums among them, and takes the
    fastest: the codes would differ in rounding from one run to the next. So no max-autotune either.
    And no CUDA graphs (reduce-overhead): they belong to one thread, and at full batches launching
    kernels is not what takes the time.
    """
    options: dict[str, str | int | bool] = {"max_autotune": False, "triton.cudagraphs": False}
    # Older versions of torch have only the narrower switch.
    known = torch._inductor.list_options()
    for name, value in (("deterministic", True), ("triton.autotune_pointwise", False)):
        if name in known:
            options[name] = value
    return options
