"""Image files to uint8 images to pixels, and back.

How a file becomes pixels is defined here and recorded with every code store (`Transform`): the
EXIF orientation is applied; an embedded colour profile is converted to sRGB; alpha is composited on
white; CMYK and other modes become RGB; 16-bit samples keep their high byte; of an animation the
first frame is used; resizing is Pillow's antialiased bicubic. Metadata that is corrupt or large
costs no image (ops.image_metadata). A truncated file is an error, never filled with grey.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from ops.colour_profiles import lab_to_srgb, to_srgb
from ops.config import ConfigError, Registry, UserError
from ops.image_metadata import split_metadata
from ops.png import write_png_strips
from ops.transient_errors import is_transient
from ops.views import View, seen_part

ImageArray = np.ndarray[Any, np.dtype[np.uint8]]
Raster = np.ndarray[Any, Any]  # what Pillow can resize: uint8 (H, W, 3), any grey (H, W)

MAX_PIXELS = 120_000_000  # larger ones are more often decompression bombs than photographs
# No others: Pillow passes PostScript, for example, to an interpreter.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))  # fmt: skip
MAGIC_LENGTH = 12
ORIENTATION_TAG = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
GREY_LEVELS = {"L;2": 85, "L;4": 17}  # the factors by which Pillow scales 2- and 4-bit samples


class ImageError(UserError):
    """Bytes that are not a usable image; `reason` is one or two words, the message says more."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DecodedImage(NamedTuple):
    """An image and the full size that its file has."""

    image: ImageArray  # uint8 (h, w, 3), upright; may be smaller than the file's size
    width: int  # of the upright image in the file, pixels
    height: int
    note: str | None = None  # on what was not used of the file: a broken colour profile


class Layers(NamedTuple):
    """The colours and the transparency of an upright image."""

    colours: Image.Image  # RGB, in sRGB; those of transparent pixels as the file has them
    alpha: Image.Image | None  # L; None where all pixels are opaque
    width: int  # as in DecodedImage
    height: int
    note: str | None


def has_image_suffix(name: str) -> bool:
    """Whether a file's name has the suffix of a supported format."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first MAGIC_LENGTH bytes are those of a supported format."""
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[4:8] == b"ftyp":
        return head[8:12] in (b"avif", b"avis")
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
    return head.startswith((*starts, b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"))


def decode_image(data: bytes) -> ImageArray:
    """The upright RGB image, uint8 (H, W, 3), in a file's bytes.

    Raises ImageError for bytes that are empty, of another format, broken, truncated or too large.
    """
    return read_image(data).image


def read_image(data: bytes, min_side: int | None = None) -> DecodedImage:
    """The upright RGB image in a file's bytes and its size.

    With `min_side`, a JPEG may be decoded at a half, a quarter or an eighth of its size as long as
    its short side has that many pixels: several times faster for photographs from cameras.
    Raises ImageError as decode_image does.
    """
    layers = read_layers(data, min_side)
    return DecodedImage(np.asarray(_on_white(layers)), layers.width, layers.height, layers.note)


def _on_white(layers: Layers) -> Image.Image:
    """The colours composited on white."""
    if layers.alpha is None:
        return layers.colours
    image = layers.colours
    image.putalpha(layers.alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def read_layers(data: bytes, min_side: int | None = None) -> Layers:
    """What read_image composites; raises ImageError as it does."""
    if not data:
        raise ImageError("empty", "the file has no bytes")
    with opened_image(io.BytesIO(data)) as file:
        width, height = file.size
        if min_side is not None and file.format == "JPEG":
            scale = min_side / min(width, height)
            file.draft("RGB", (int(width * scale), int(height * scale)))
        raw = raw_mode(file)
        key = _take_key_colour(file, raw)
        file.load()
        orientation = orientation_of(file)
        image, alpha, note = _colours(file, raw)
        if key is not None:
            alpha = _alpha_of_key(_sixteen_bit_samples(data, file), key)
    if orientation in TRANSPOSITIONS:
        image = image.transpose(TRANSPOSITIONS[orientation])
        alpha = alpha and alpha.transpose(TRANSPOSITIONS[orientation])
    if orientation in SIDEWAYS:
        width, height = height, width
    return Layers(image, alpha, width, height, note)


def image_size(source: BinaryIO) -> tuple[int, int]:
    """(width, height) of the upright image, from the file's header; raises ImageError."""
    with opened_image(source, header_only=True) as file:
        # Pillow rotates TIFF itself.
        sideways = file.format != "TIFF" and orientation_of(file) in SIDEWAYS
        return (file.height, file.width) if sideways else (file.width, file.height)


@contextlib.contextmanager
def opened_image(source: BinaryIO, header_only: bool = False) -> Iterator[ImageFile.ImageFile]:
    """The file opened by Pillow; all its exceptions, in the body as well, become ImageError.

    With `header_only` its pixels cannot be read.
    """
    try:
        parts = split_metadata(source, header_only)
        with _pillow_quiet, Image.open(parts.pixels, formats=_formats()) as file:
            file.info.update(parts.metadata)
            if parts.cut_short:
                raise ImageError("truncated", "the JPEG has no end marker: the file was cut short")
            if file.width * file.height > MAX_PIXELS:
                raise ImageError("too large", _too_large(f"{file.width}x{file.height} pixels"))
            yield file
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too large", _too_large(str(error))) from None
    except UnidentifiedImageError:
        raise ImageError(
            "not an image", "the file does not start like any supported image format"
        ) from None
    # Pillow's decoders raise many types on bad bytes: OSError, SyntaxError, struct.error...
    except Exception as error:
        if is_transient(error) or "out of memory" in str(error):
            _check_memory(error)
        reason = "truncated" if "truncated" in str(error).lower() else "broken"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from None


def _check_memory(error: Exception) -> None:
    """Raise a transient error, unless it is a lack of memory where an image has enough.

    Decoders ask for any amount where a file is corrupt.
    """
    if isinstance(error, OSError) and is_transient(error):
        raise error
    try:
        bytearray(MAX_PIXELS * 4)
    except MemoryError:
        raise MemoryError(str(error)) from error


def _too_large(found: str) -> str:
    return f"{found}; the limit is {MAX_PIXELS // 1_000_000} million pixels"


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF is not in every Pillow


def orientation_of(file: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if there is none or it cannot be read."""
    try:
        # Not file.getexif(): of a PNG it decodes the pixels, to look for EXIF behind them.
        return int(Image.Image.getexif(file).get(ORIENTATION_TAG, 1))
    except MemoryError:
        raise
    except Exception:  # broken EXIF is common in valid images
        return 1


def raw_mode(file: ImageFile.ImageFile) -> str | None:
    """Pillow's name for the samples in the file; to be asked before they are loaded."""
    arguments: Any = file.tile[0][3] if file.tile else None
    raw: str | None = arguments[0] if isinstance(arguments, tuple) else arguments
    return raw


def _colours(
    file: ImageFile.ImageFile, raw: str | None
) -> tuple[Image.Image, Image.Image | None, str | None]:
    """The colours (RGB) of a loaded image, its alpha (L) and a note, see Layers."""
    image: Image.Image = file
    alpha = None
    if image.mode == "F":
        raise ImageError("unsupported", "floating-point samples have no defined white")
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise ImageError("unsupported", "grey samples of more than 16 bits")
        image = Image.fromarray((samples >> 8).astype(np.uint8))
    if image.has_transparency_data:
        # Pillow has 16-bit grey with alpha as RGBA.
        is_grey = image.mode in ("1", "L", "LA", "La") or raw == "LA;16B"
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("R") if is_grey else image.convert("RGB")
    if image.mode == "LAB":
        return lab_to_srgb(image), alpha, None
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    profile = file.info.get("icc_profile")
    if profile is None:
        return image if image.mode == "RGB" else image.convert("RGB"), alpha, None
    image, note = to_srgb(image, profile if isinstance(profile, bytes) else b"")
    return image, alpha, note


# --- transparency of PNG without an alpha channel: one colour, named by the chunk tRNS


def _take_key_colour(file: ImageFile.ImageFile, raw: str | None) -> tuple[int, ...] | None:
    """The transparent colour of a 16-bit PNG, taken from the file, as Pillow would compare it with
    eight bits of the samples; for others it is corrected in the file."""
    key = file.info.get("transparency")
    if file.format != "PNG" or not isinstance(key, int | tuple) or file.mode == "P":
        return None
    if raw in ("I;16B", "RGB;16B"):
        del file.info["transparency"]
        return key if isinstance(key, tuple) else (key,)
    if isinstance(key, tuple):
        file.info["transparency"] = tuple(level & 255 for level in key)
    else:
        scale = GREY_LEVELS.get(raw or "", 1)
        file.info["transparency"] = (key & (255 // scale)) * scale
    return None


def _sixteen_bit_samples(data: bytes, file: ImageFile.ImageFile) -> Raster:
    """The samples, uint16 (H, W, 1 or 3), of a PNG in `data` that is loaded in `file`."""
    if file.mode != "RGB":
        return np.asarray(file)[..., None]
    with opened_image(io.BytesIO(data)) as again:
        again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]  # the low bytes
        again.load()
        samples: Raster = np.asarray(file).astype(np.uint16) << 8 | np.asarray(again)
        return samples


def _alpha_of_key(samples: Raster, key: tuple[int, ...]) -> Image.Image:
    opaque = (samples != np.array(key)).any(-1)
    return Image.fromarray(opaque.astype(np.uint8) * 255)


class _PillowQuiet:
    """Ignores Pillow's warnings, mostly of broken metadata, while any thread is inside.

    warnings.catch_warnings is not thread-safe: it replaces the filters of all threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                # Another thread may have restored its own filters meanwhile.
                with contextlib.suppress(ValueError):
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_pillow_quiet = _PillowQuiet()


# --- sizes and crops


MAX_ASPECT = 4  # native images with a larger aspect are cropped at both ends
#: Views of one image that each crop makes.
CROPS: Registry[int] = Registry("crop")
for _name, _views in (("center", 1), ("random", 1), ("ten", 10), ("native", 1)):
    CROPS.register(_name)(_views)
#: Times each of those views is encoded.
FLIPS: Registry[int] = Registry("flip")
for _name, _times in (("none", 1), ("both", 2)):
    FLIPS.register(_name)(_times)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """From an image file to the images that are encoded; recorded with a code store.

    center: the short side becomes image_size, then the centre square is cut. random: one square of
    an image 1.125 times as large, placed by (seed, key). ten: the four corners and the centre of
    that, then the same mirrored. native: the short side becomes image_size and the long side keeps
    the aspect, rounded to a multiple of `multiple_of`, at most MAX_ASPECT times the short one.
    flip both: all views of the crop, then all of them mirrored left to right.
    """

    image_size: int = 256  # pixels
    crop: str = "center"
    flip: str = "none"
    seed: int = 0
    multiple_of: int = 1  # pixels; the tokenizer's downsample factor
    decoding: str = (
        "orientation applied, colour profiles to sRGB (relative colorimetric), alpha on white, "
        "16 bits >> 8, first frame"
    )
    resizing: str = "pillow bicubic, antialiased; JPEG scaled to at least twice the size"

    def __post_init__(self) -> None:
        if self.views > CROPS[self.crop] and self.crop == "ten":
            raise ConfigError("Crop ten includes mirrored views already: leave flip at none.")
        if self.image_size < 1 or self.image_size % self.multiple_of:
            raise ConfigError(
                f"Image size {self.image_size} is not a multiple of the tokenizer's downsample "
                f"factor {self.multiple_of}. Use {_nearest(self.image_size, self.multiple_of)}."
            )

    @property
    def views(self) -> int:
        """Number of views of each image."""
        return CROPS[self.crop] * FLIPS[self.flip]

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the views of an image of `width` x `height` pixels."""
        if self.crop != "native":
            return self.image_size, self.image_size
        aspect = min(max(width, height) / min(width, height), MAX_ASPECT)
        long = _nearest(self.image_size * aspect, self.multiple_of)
        return (self.image_size, long) if width >= height else (long, self.image_size)

    def read(
        self, data: bytes, size: tuple[int, int], view: int = 0, key: str = ""
    ) -> DecodedImage:
        """View number `view` of the image in `data`, uint8 of `size` (height, width).

        Raises ImageError as decode_image does, and if a native `size` cannot be this transform's:
        files that could not be opened at planning have such a size.
        """
        layers = read_layers(data, min_side=2 * max(size))
        if self.crop == "native" and min(size) != self.image_size:
            raise ImageError(
                "changed", "its size could not be read at planning; touch the file to plan it again"
            )
        # Not by way of an array: Pillow's pixels have four bytes, so that each way is a copy.
        image = self._cut(_on_white(layers), size, view, key, Image.Resampling.BICUBIC)
        return DecodedImage(image, layers.width, layers.height, layers.note)

    def cut(
        self,
        raster: Raster,
        size: tuple[int, int],
        view: int,
        key: str,
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Raster:
        """View number `view` of an upright raster (H, W, ...), of `size` (height, width)."""
        return self._cut(Image.fromarray(raster), size, view, key, resampling)

    def _cut(
        self,
        image: Image.Image,
        size: tuple[int, int],
        view: int,
        key: str,
        resampling: Image.Resampling,
    ) -> Raster:
        mirrored, view = divmod(view, CROPS[self.crop])
        cut = _resized_crop(image, size, self.crop, view, self.seed, key, resampling)
        return _mirrored(cut) if mirrored else cut

    def view_of(self, width: int, height: int, size: tuple[int, int], view: int, key: str) -> View:
        """The part of an upright image of `width` x `height` pixels that view `view` shows."""
        mirrored, view = divmod(view, CROPS[self.crop])
        part = seen_part((height, width), size, self.crop, view, self.seed, key)
        return View(
            bool(mirrored) or (self.crop == "ten" and view >= 5),
            *(part.left / width, part.top / height, part.right / width, part.bottom / height),
        )


def _nearest(value: float, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)


def resize_and_crop(
    image: Raster,
    size: int | tuple[int, int],
    crop: str = "center",
    *,
    view: int = 0,
    seed: int = 0,
    key: str = "",
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Raster:
    """One crop of `size` (a side, or (height, width)) from an image, (H, W, 3) or (H, W).

    The image is scaled to cover `size` (times CROP_MARGIN for random and ten), then cut; see
    Transform for the crops. `random` depends only on (seed, key, view).
    """
    height, width = (size, size) if isinstance(size, int) else size
    return _resized_crop(Image.fromarray(image), (height, width), crop, view, seed, key, resampling)


def _resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    crop: str,
    view: int,
    seed: int,
    key: str,
    resampling: Image.Resampling,
) -> Raster:
    """What resize_and_crop returns, of an image that Pillow holds."""
    height, width = size
    # Only the part that the crop shows is resized: scaling a 30000x1 image to cover a square would
    # take gigabytes.
    part = seen_part((image.height, image.width), size, crop, view, seed, key)
    if image.size != (width, height) or part != (0, 0, width, height):
        image = image.resize((width, height), resampling, box=part)
    cut = np.asarray(image)
    return _mirrored(cut) if crop == "ten" and view >= 5 else cut


def _mirrored(image: Raster) -> Raster:
    return np.ascontiguousarray(image[:, ::-1])


# --- pixels


def to_pixels(images: ImageArray) -> Tensor:
    """Pixels (B, 3, H, W), float32 in [-1, 1], from uint8 images (B, H, W, 3) or (H, W, 3)."""
    batch = images[None] if images.ndim == 3 else images
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))) / 127.5 - 1


def to_image(pixels: Tensor) -> ImageArray:
    """Images, uint8 (B, H, W, 3), from pixels (B, 3, H, W), clamped to [-1, 1]."""
    levels = ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255)
    images: ImageArray = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return images


def write_png(path: Path, image: ImageArray) -> None:
    """Write one image, uint8 (H, W, 3), as PNG, atomically."""
    write_png_strips(path, image.shape[1], image.shape[0], [image])


def png_bytes(image: ImageArray) -> bytes:
    """One image, uint8 (H, W, 3) or (H, W, 4), as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def image_grid(images: ImageArray, columns: int, gap: int = 2) -> ImageArray:
    """Images, uint8 (N, H, W, 3), arranged row by row in one, `gap` white pixels apart."""
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    grid = np.full(shape, 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid
