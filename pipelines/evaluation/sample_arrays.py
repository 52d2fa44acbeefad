"""Samples as the .npz that the field's evaluators read: uint8 (n, H, W, 3), named arr_0."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from ops.config import UserError
from ops.files import atomic_path, make_folders
from ops.images import ImageError
from pipelines.evaluation.image_sets import ImageSet


def write_sample_array(path: Path, images: ImageSet) -> int:
    """Write the images that can be read, in order; returns their number.

    Raises UserError where they have several sizes, or none can be read. Memory is that of a batch.
    """
    size = images.first_size()
    make_folders(path.parent)
    with tempfile.TemporaryFile(dir=path.parent) as raw:
        count = 0  # known only once all are read, and the array's header has it
        for batch in images.batches():
            for key, image in batch:
                if isinstance(image, ImageError):
                    continue
                if image.shape[:2] != size:
                    raise UserError(
                        f"{key} has {image.shape[1]}x{image.shape[0]} pixels, but the first sample "
                        f"{size[1]}x{size[0]}: --save-npz takes samples of one size."
                    )
                raw.write(image.tobytes())
                count += 1
        raw.seek(0)
        form = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
        with (
            atomic_path(path) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as member,
        ):
            np.lib.format.write_array_header_1_0(member, form)
            shutil.copyfileobj(raw, member)
    return count
