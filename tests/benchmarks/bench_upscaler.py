"""A prior that enlarges, against bicubic interpolation, on photographs it was not trained on.

    python tests/benchmarks/bench_upscaler.py --prior NAME|RUN --data FOLDER [--side 256] \
        [--images 20] [--out pairs.png]

The middle square of each photograph, `side` pixels wide, is shrunk by the ratio of the prior's
condition low_res, and enlarged again by `generate --condition low_res=...`. Prints, for the
prior, for bicubic interpolation and for the tokenizer's own reconstruction of the photographs: PSNR
in dB, the mean absolute gradient as a share of the photographs', and the patch distance to them
(pipelines.studies.distances). The columns of `--out` are photograph, bicubic, prior.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ops.images import decode_image, image_grid, resize_and_crop, to_image, to_pixels, write_png
from ops.metrics import mean_absolute_gradient, psnr
from pipelines import generate
from pipelines.conditioning import find_tokenizer
from pipelines.generation import sample_name
from pipelines.studies.distances import patch_distance
from prior import LowResolution, find_prior, load_prior


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """A square image (S, S, 3) at another size, bicubic, antialiased where it shrinks."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def enlarge(prior: str, images: list[np.ndarray], side: int, flags: list[str]) -> Tensor:
    """Pixels (N, 3, side, side) of what `generate` makes of small images."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given", Path(folder) / "out"
        given.mkdir()
        for number, image in enumerate(images):
            write_png(given / f"{number:05d}.png", image)
        where = ["--prior", prior, "--condition", f"low_res={given}", "--out", str(out)]
        what = ["--count", str(len(images)), "--size", f"{side}x{side}"]
        if generate.main([*where, *what, *flags]):
            raise SystemExit("generate failed")
        names = [out / f"{sample_name(number)}.png" for number in range(len(images))]
        return torch.cat([to_pixels(decode_image(name.read_bytes())) for name in names])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", help="a run or a bundled prior; without it, nothing is done")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options, flags = parser.parse_known_args(argv)  # further flags are those of generate
    if options.prior is None or options.data is None:
        print("name a prior that enlarges, and photographs: --prior NAME|RUN --data FOLDER")
        return 0
    prior = load_prior(options.prior)
    (ratio,) = (part.ratio for part in prior.conditions.parts if isinstance(part, LowResolution))
    files = sorted(path for path in options.data.rglob("*") if path.is_file())[: options.images]
    images = [resize_and_crop(decode_image(path.read_bytes()), options.side) for path in files]
    small = [resized(image, options.side // ratio) for image in images]
    photographs = to_pixels(np.stack(images))
    bicubic = to_pixels(np.stack([resized(image, options.side) for image in small]))
    tokenizer = find_tokenizer(find_prior(options.prior), prior, torch.device("cpu"))
    with torch.inference_mode():
        again = torch.cat([tokenizer.decode(tokenizer.encode(each[None])) for each in photographs])
    sampled = enlarge(options.prior, small, options.side, flags)
    true_gradient = mean_absolute_gradient(photographs).mean()
    rows = {"bicubic": bicubic, options.prior: sampled, "reconstruction": again}
    for name, pixels in rows.items():
        gradient = float(mean_absolute_gradient(pixels).mean() / true_gradient)
        print(
            f"{name}: {float(psnr(photographs, pixels).mean()):.2f} dB, gradient {gradient:.3f}, "
            f"patch distance {patch_distance(photographs, pixels):.4f}"
        )
    if options.out:
        columns = torch.stack([photographs, bicubic, sampled], dim=1).flatten(0, 1)
        write_png(options.out, image_grid(to_image(columns), columns=3))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
