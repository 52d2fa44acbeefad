"""JPEG files decoded, resized and cropped on a GPU, by nvJPEG. Not yet run on one.

nvJPEG's pixels differ from libjpeg's by rounding, so that a store records which decoder made it.
Whether a file goes to the GPU depends on its bytes alone: a plain colour JPEG does, any other is
decoded on the CPU as ever. Resizing computes Pillow's bicubic filter with its 22-bit weights, in
whole numbers, so that every device gives the same bits; the horizontal pass always comes first.
"""

from __future__ import annotations

import importlib
import io
import struct
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ops.config import ConfigError
from ops.image_metadata import split_metadata
from ops.images import (
    CROPS,
    MAX_PIXELS,
    ORIENTATION_TAG,
    DecodedImage,
    Transform,
    check_native_size,
)
from ops.transient_errors import is_transient
from ops.views import Part, seen_part

BASELINE, PROGRESSIVE = 0xC0, 0xC2  # markers of the frames that nvJPEG decodes
SCAN, ADOBE = 0xDA, 0xEE
WEIGHT_BITS = 22  # of Pillow's weights behind the point
RGB = 3  # torchvision's ImageReadMode.RGB


class JpegDecoder:
    """Reads views of JPEG files on `device`; safe to use in several threads.

    On a CPU, for tests, libjpeg decodes. Raises ConfigError where torchvision cannot decode there.
    """

    def __init__(self, transform: Transform, device: torch.device) -> None:
        importlib.import_module("torchvision.io")  # registers the operators
        # Not decode_jpeg of torchvision.io, which calls these: it warns of a successor.
        name = "decode_jpegs_cuda" if device.type == "cuda" else "decode_jpeg"
        if not hasattr(torch.ops.image, name):
            raise ConfigError("This torchvision cannot decode JPEG on GPUs. Use --decoder pillow.")
        self.transform, self.device = transform, device

    def read(
        self, data: bytes, size: tuple[int, int], view: int = 0, key: str = ""
    ) -> DecodedImage:
        """What Transform.read gives, which it calls for files that the device does not decode.

        Raises ImageError as that does, and torch's OutOfMemoryError.
        """
        frame = plain_frame(data)
        if frame is None:
            return self.transform.read(data, size, view, key)
        check_native_size(self.transform, size)
        try:
            image = self._read(data, frame, size, view, key)
        except RuntimeError as error:
            if is_transient(error):
                raise
            # What nvJPEG calls corrupt: libjpeg repairs it, or says what it is.
            return self.transform.read(data, size, view, key)
        return DecodedImage(image, frame.width, frame.height)

    def _read(
        self, data: bytes, frame: Frame, size: tuple[int, int], view: int, key: str
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        # One stream a thread: on the encoder's, an image would wait for its batches.
        on_gpu = self.device.type == "cuda"
        with torch.cuda.stream(torch.cuda.Stream(self.device) if on_gpu else None):
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if on_gpu:
                (image,) = torch.ops.image.decode_jpegs_cuda([encoded], RGB, self.device)
            else:
                image = torch.ops.image.decode_jpeg(encoded, RGB, False)
            if image.shape != (3, frame.height, frame.width):
                raise RuntimeError(f"decoded to {tuple(image.shape)}")
            crop, seed = self.transform.crop, self.transform.seed
            mirrored, view = divmod(view, CROPS[crop])
            part = seen_part((frame.height, frame.width), size, crop, view, seed, key)
            cut = resized(image, size, part)
            if bool(mirrored) != (crop == "ten" and view >= 5):
                cut = cut.flip(2)
            return cut.permute(1, 2, 0).contiguous().cpu().numpy()


class Frame(NamedTuple):
    """The size of a JPEG's image in pixels."""

    width: int
    height: int


def plain_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG that the device decodes; None for any other file.

    Plain is: baseline or progressive, 8 bits, YCbCr, upright, without a colour profile, and not cut
    short.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    parts = split_metadata(io.BytesIO(data))
    if parts.cut_short or "icc_profile" in parts.metadata or not _is_upright(parts.metadata):
        return None
    found: Frame | None = None
    place = 2
    plain = parts.pixels.read()
    while place + 4 <= len(plain) and plain[place] == 0xFF:
        marker, length = plain[place + 1], int.from_bytes(plain[place + 2 : place + 4], "big")
        body = plain[place + 4 : place + 2 + length]
        if marker == SCAN:
            return found
        if marker == ADOBE and body.startswith(b"Adobe") and body[11:12] != b"\x01":
            return None  # not YCbCr
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            found = _colour_frame(marker, body)
            if found is None:
                return None
        place += 2 + length
    return None


def _colour_frame(marker: int, body: bytes) -> Frame | None:
    if marker not in (BASELINE, PROGRESSIVE) or len(body) < 15:
        return None
    bits, height, width, components = struct.unpack(">BHHB", body[:6])
    if bits != 8 or components != 3 or not 0 < width * height <= MAX_PIXELS:
        return None
    # Components named R, G, B are not YCbCr.
    return None if bytes(body[6:15:3]) == b"RGB" else Frame(width, height)


def _is_upright(metadata: dict[str, Any]) -> bool:
    if b"Orientation" in metadata.get("xmp", b""):
        return False
    exif = Image.Exif()
    try:
        exif.load(metadata.get("exif", b""))
        return bool(exif.get(ORIENTATION_TAG, 1) == 1)
    except Exception:  # Pillow's parser of EXIF raises many types; the CPU reads such files
        return False


def resized(image: Tensor, size: tuple[int, int], part: Part) -> Tensor:
    """The `part` of an image, uint8 (C, H, W), resized to `size` (height, width), on its device."""
    height, width = size
    if part.left or part.right != width or image.shape[2] != width:
        image = _filtered(image, _weights(image.shape[2], part.left, part.right, width))
    if part.top or part.bottom != height or image.shape[1] != height:
        weights = _weights(image.shape[1], part.top, part.bottom, height)
        image = _filtered(image.transpose(1, 2), weights).transpose(1, 2)
    return image


class _Weights(NamedTuple):
    first: int  # the pixels from this to before `end` have weights
    end: int
    values: np.ndarray[Any, np.dtype[np.float64]]  # (out, end - first) whole numbers


def _filtered(image: Tensor, weights: _Weights) -> Tensor:
    """Rows of an image, uint8 (C, H, W), by weights (out, W): uint8 (C, H, out)."""
    matrix = torch.from_numpy(weights.values).to(image.device).T
    pixels = image[:, :, weights.first : weights.end]
    # Sums of whole numbers below 2**53 are exact in float64 in any order. A channel at a time:
    # eight bytes a value.
    sums = [channel.double() @ matrix for channel in pixels]
    half = 1 << (WEIGHT_BITS - 1)
    levels = [((each + half) / (1 << WEIGHT_BITS)).floor().clamp(0, 255) for each in sums]
    return torch.stack(levels).to(torch.uint8)


def _weights(count: int, low: float, high: float, out: int) -> _Weights:
    """Pillow's weights of `count` pixels in each of `out`, which show those from `low` to `high`.

    As Resample.c computes them: edges in float32, weights normalised in float64, then rounded.
    """
    edge = float(np.float32(low))
    scale = float(np.float32(high) - np.float32(low)) / out
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centres = edge + (np.arange(out) + 0.5) * scale
    starts = np.maximum((centres - support + 0.5).astype(int), 0)
    ends = np.minimum((centres + support + 0.5).astype(int), count)
    first, end = int(starts[0]), int(ends[-1])
    values = np.zeros((out, end - first))
    for row, (start, stop, centre) in enumerate(zip(starts, ends, centres, strict=True)):
        filtered = _bicubic((np.arange(start, stop) - centre + 0.5) / stretch)
        total = sum(filtered.tolist())  # one after another, as in C
        whole = filtered / total * (1 << WEIGHT_BITS)
        values[row, start - first : stop - first] = np.trunc(whole + np.copysign(0.5, whole))
    return _Weights(first, end, values)


def _bicubic(x: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    x, a = np.abs(x), -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    values: np.ndarray[Any, np.dtype[np.float64]] = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return values
