import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ops.grey_images import decode_depth, decode_labels
from ops.images import ImageError


def file_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array_file(array, kind="PNG", **options):
    return file_of(Image.fromarray(array), kind, **options)


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4) * 20,
        np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000,
    ],
)
def test_labels_keep_their_values(labels):
    assert np.array_equal(decode_labels(array_file(labels)), labels)


def test_a_palette_image_gives_its_indices():
    labels = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(labels)
    image.putpalette([200, 10, 10, 10, 200, 10, 200, 10, 10])
    assert image.mode == "P"
    assert np.array_equal(decode_labels(file_of(image)), labels)


def test_a_bilevel_image_gives_labels_0_and_1():
    labels = np.array([[0, 1], [1, 1]], np.uint8)
    assert np.array_equal(
        decode_labels(file_of(Image.fromarray(labels * 255).convert("1"))), labels
    )


def small_grey_png(labels, bits):
    """A grey PNG of fewer than eight bits a sample, which Pillow reads but does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b""
    for row in labels:
        bitstring = "".join(f"{label:0{bits}b}" for label in row)
        rows += b"\0" + int(bitstring, 2).to_bytes(len(bitstring) // 8, "big")
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_few_bits_are_not_scaled_to_eight(bits):
    labels = np.arange(16).reshape(2, 8) % 2**bits
    assert np.array_equal(decode_labels(small_grey_png(labels, bits)), labels)


def test_depth_keeps_16_bits_and_scales_8_to_16():
    depth = np.array([[0, 1], [257, 65535]], np.uint16)
    assert np.array_equal(decode_depth(array_file(depth)), depth)
    assert decode_depth(array_file(depth)).dtype == np.float32
    grey = np.array([[0, 1, 255]], np.uint8)
    assert np.array_equal(decode_depth(array_file(grey)), [[0, 257, 65535]])


def test_exif_orientation_is_applied_to_maps():
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise
    assert np.array_equal(decode_labels(array_file(labels, exif=exif)), np.rot90(labels, -1))
    depth = labels.astype(np.uint16)
    assert np.array_equal(decode_depth(array_file(depth, exif=exif)), np.rot90(depth, -1))


RGB = np.zeros((2, 2, 3), np.uint8)
GREY = np.zeros((8, 8), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
FLOATS = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("decode", "data", "reason"),
    [
        (decode_labels, b"", "empty"),
        (decode_labels, b"no image at all", "not an image"),
        (decode_labels, array_file(RGB), "not labels"),
        (decode_labels, array_file(GREY, "JPEG"), "not labels"),
        (decode_labels, array_file(FLOATS, "TIFF"), "not labels"),
        (decode_labels, array_file(np.full((2, 2), -1, np.int32), "TIFF"), "not labels"),
        (decode_labels, array_file(NOISE)[:-900], "truncated"),
        (decode_depth, b"", "empty"),
        (decode_depth, array_file(RGB), "not depth"),
        (decode_depth, array_file(FLOATS, "TIFF"), "not depth"),
        (decode_depth, array_file(np.full((2, 2), 70000, np.int32), "TIFF"), "not depth"),
    ],
)
def test_unsuitable_files_are_refused_with_a_reason(decode, data, reason):
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == reason
