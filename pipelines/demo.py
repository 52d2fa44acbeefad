"""All stages on photographs: encode, open the store, train a small prior, sample, report.

python -m pipelines.demo [--images FOLDER]

Each stage is one of the public commands. Run again, the demo resumes where it stopped, and does
nothing if everything is done.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.config import UserError
from ops.files import write_bytes, write_json
from pipelines import encode, generate, report, train_prior
from pipelines.console import run_command, show, show_error
from pipelines.inputs import list_input
from pipelines.reports import TIMINGS
from pipelines.store import CodeStore
from tokenizer import load_tokenizer

#: Photographs that packages contain: (package, path in it).
PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/coins.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
# Fewer images than this are encoded in ten views each, so that the prior has enough rows.
ENOUGH_IMAGES = 100


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Encode photographs, train a small prior on the codes, sample images, write a report."""

    images: Path | None = None
    """Folder of photographs; by default about ten contained in scikit-image, scikit-learn and
    matplotlib."""
    out: Path = Path("runs/demo")
    """Output folder."""
    tokenizer: str = "photo-f8"
    """A bundled tokenizer, or a model folder."""
    image_size: int = 256
    """Side of encoded images and of samples, in pixels."""
    steps: int = 400
    """Training steps of the prior."""
    samples: int = 4
    """Number of samples of the size the prior was trained on."""
    canvas: str = "1024x512"
    """Size of one large sample, WIDTHxHEIGHT in pixels."""


def main(argv: list[str] | None = None) -> int:
    return run_command(Flags, run, argv, prog="pipelines.demo")


def run(flags: Flags) -> int:
    out = flags.out
    images = out / "photographs" if flags.images is None else flags.images
    settings = _settings(flags)
    older = set_aside(out, settings)
    if older is not None:
        show(f"{out} was made with other settings and has been renamed to {older}.")
    if flags.images is None:
        gather_photographs(images)
    write_json(out / "demo.json", settings)
    stages = stages_of(flags, images)
    for number, (name, stage) in enumerate(stages, 1):
        show("", f"[{number}/{len(stages)}] {name}")
        start = time.perf_counter()
        code = stage()
        if code:
            show_error(f"stopped in stage {name!r}")
            return code
        add_timing(out / TIMINGS, name, time.perf_counter() - start)
    show("", "[report]")
    return report.main([str(out)])


def stages_of(flags: Flags, images: Path) -> list[tuple[str, Callable[[], int]]]:
    """(heading, function) of each stage in order; the functions return an exit code."""
    out = flags.out
    codes, prior = str(out / "codes.zarr"), str(out / "prior")
    size = f"{flags.image_size}x{flags.image_size}"

    def encode_images() -> int:
        crop = "ten" if len(list_input(images).entries) < ENOUGH_IMAGES else "center"
        how = ["--image-size", str(flags.image_size), "--crop", crop]
        where = ["--in", str(images), "--out", codes, "--tokenizer", flags.tokenizer]
        return encode.main(where + how)

    def open_store() -> int:
        show(describe_store(CodeStore.open(codes)))
        return 0

    def train() -> int:
        return train_prior.main(
            ["tiny", "--codes", codes, "--out", prior, "--steps", str(flags.steps)]
        )

    def samples(folder: str, count: int, size: str) -> Callable[[], int]:
        target = ["--out", str(out / folder), "--count", str(count), "--size", size]
        # A prior this small gives rare codes too much probability. Compared by eye, the paper's
        # top-k of 100 gives long streaks; top-p keeps more of the photographs' texture.
        draws = ["--seed", "0", "--top-p", "0.92"]
        return lambda: generate.main(["--prior", prior, *target, *draws])

    return [
        ("Encode the photographs", encode_images),
        ("Open the code store", open_store),
        ("Train a small prior on the codes", train),
        (f"Generate {flags.samples} samples of {size}", samples("samples", flags.samples, size)),
        (f"Generate a canvas of {flags.canvas}", samples("canvas", 1, flags.canvas)),
    ]


def gather_photographs(folder: Path) -> None:
    """Copy the packages' photographs that `folder` lacks into it.

    Raises UserError if none of the packages is installed.
    """
    found = 0
    for package, name in PHOTOGRAPHS:
        target = folder / Path(name).name
        source = _package_folder(package) / name
        # Copied again it would have a new modification time and count as a changed image.
        if not target.exists() and source.is_file():
            write_bytes(target, source.read_bytes())
        found += target.exists()
    if not found:
        raise UserError(
            "No photographs: scikit-image, scikit-learn and matplotlib are not installed. "
            'Install the extra, pip install -e ".[demo]", or give your own by --images FOLDER.'
        )


def _package_folder(package: str) -> Path:
    # Located without importing: importing scikit-learn takes a second.
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else Path("missing")


def _settings(flags: Flags) -> dict[str, Any]:
    """What decides the demo's output; the fingerprint, since bundled weights may change."""
    return {
        "images": None if flags.images is None else str(flags.images.resolve()),
        "tokenizer": flags.tokenizer,
        "fingerprint": load_tokenizer(flags.tokenizer).fingerprint,
        "image_size": flags.image_size,
        "steps": flags.steps,
        "samples": flags.samples,
        "canvas": flags.canvas,
    }


def set_aside(out: Path, settings: dict[str, Any]) -> Path | None:
    """Rename the folder of a demo with other settings; its new name, or None if there is none."""
    path = out / "demo.json"
    if not path.is_file() or json.loads(path.read_text()) == settings:
        return None
    number = 1
    while (renamed := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    out.rename(renamed)
    return renamed


def describe_store(store: CodeStore) -> str:
    """One line: rows, grids, codebook size, and the first codes of a row."""
    provenance = store.provenance["image"]
    rows = ", ".join(f"{count:,} rows of {grid}" for grid, count in store.grids.items())
    start = (
        f"{store[0]['key']} begins {store[0]['codes'].ravel()[:6].tolist()}" if rows else "empty"
    )
    return f"{rows} codes out of {provenance['codebook_size']:,}; {start}"


def add_timing(path: Path, stage: str, seconds: float) -> None:
    """Add to the seconds a stage has taken over all runs of this demo."""
    times = json.loads(path.read_text()) if path.is_file() else []
    totals = {entry["stage"]: entry["seconds"] for entry in times}
    totals[stage] = round(totals.get(stage, 0.0) + seconds, 2)
    write_json(path, [{"stage": name, "seconds": total} for name, total in totals.items()])


if __name__ == "__main__":
    sys.exit(main())
