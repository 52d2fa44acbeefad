"""The stages of the demo, each of which is one of the public commands."""

from __future__ import annotations

import importlib.util
import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ops.config import UserError
from ops.files import write_bytes, write_json
from ops.images import ImageError, decode_image, image_size, resize_and_crop, write_png
from ops.low_resolution import enlarged
from ops.paths import hash_file
from pipelines import encode, generate, report, train_prior
from pipelines.console import show, show_error
from pipelines.flags import DemoFlags
from pipelines.generation import BASE, UPSCALER, class_names, low_res_ratio
from pipelines.inputs import Entry, list_input, read_entry
from pipelines.reports import DemoFolder
from pipelines.store import CodeStore
from prior import bundled_priors, describe_prior, find_prior
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
LISTED_IMAGES = 1000  # among which the one to be shrunk is chosen
THUMBNAIL = 256  # pixels
CLASSES = 4


def run_stages(flags: DemoFlags) -> int:
    out = flags.out
    images = out / "photographs" if flags.images is None else flags.images
    settings = _settings(flags)
    older = set_aside(out, settings)
    if older is not None:
        show(f"{out} was made with other settings and has been renamed to {older}.")
    if flags.images is None:
        gather_photographs(images)
    folder = DemoFolder(out)
    write_json(folder.settings, settings)
    stages = stages_of(flags, images)
    for number, (name, stage) in enumerate(stages, 1):
        show("", f"[{number}/{len(stages)}] {name}")
        start = time.perf_counter()
        code = stage()
        if code:
            show_error(f"stopped in stage {name!r}")
            return code
        add_timing(folder.timings, name, time.perf_counter() - start)
    show("", "[report]")
    return report.main([str(out)])


def stages_of(flags: DemoFlags, images: Path) -> list[tuple[str, Callable[[], int]]]:
    """(heading, function) of each stage in order; the functions return an exit code."""
    folder = DemoFolder(flags.out)
    size = f"{flags.image_size}x{flags.image_size}"

    def encode_images() -> int:
        crop = "ten" if len(list_input(images).entries) < ENOUGH_IMAGES else "center"
        how = ["--image-size", str(flags.image_size), "--crop", crop]
        where = ["--in", str(images), "--out", str(folder.codes), "--tokenizer", flags.tokenizer]
        return encode.main(where + how)

    def open_store() -> int:
        show(describe_store(CodeStore.open(str(folder.codes))))
        return 0

    def clothing() -> int:
        if lacks(BASE, UPSCALER):
            return 0
        names = class_names(describe_prior(BASE))
        labels = names[:: max(1, len(names) // CLASSES)][:CLASSES]
        show(", ".join(labels))
        where = ["--prior", BASE, "--upscale", UPSCALER, "--out", str(folder.clothing)]
        return generate.main([*where, "--count", str(len(labels)), "--labels", *labels])

    def enlarge() -> int:
        if lacks(UPSCALER):
            return 0
        write_thumbnail(images, folder)
        given = ["--condition", f"low_res={folder.thumbnail}", "--out", str(folder.enlarged)]
        return generate.main(["--prior", UPSCALER, *given])

    def train() -> int:
        run = ["tiny", "--codes", str(folder.codes), "--out", str(folder.prior)]
        return train_prior.main([*run, "--steps", str(flags.steps), "--factorised", "auto"])

    def sample() -> int:
        where = ["--prior", str(folder.prior), "--out", str(folder.samples), "--size", size]
        # A prior this small gives rare codes too much probability. Compared by eye, the paper's
        # top-k of 100 gives long streaks; top-p keeps more of the photographs' texture.
        return generate.main([*where, "--count", str(flags.samples), "--top-p", "0.92"])

    return [
        ("Encode the photographs", encode_images),
        ("Open the code store", open_store),
        (f"Generate clothing of {CLASSES} classes with the bundled priors", clothing),
        ("Enlarge a thumbnail with a bundled prior", enlarge),
        ("Train a small prior on the codes, for a first minute", train),
        (f"Generate {flags.samples} samples of {size} with it", sample),
    ]


def lacks(*names: str) -> bool:
    """Whether a prior is not bundled; a line says that the stage is left out."""
    missing = [name for name in names if name not in bundled_priors()]
    if missing:
        show(f"left out: these priors are not bundled: {', '.join(missing)}")
    return bool(missing)


def write_thumbnail(images: Path, folder: DemoFolder) -> None:
    """Write a thumbnail of the photograph with the longest short side, and what its enlargement is
    to be compared with: the photograph, and bicubic interpolation."""
    entry = largest_image(list_input(images).entries[:LISTED_IMAGES])
    image = decode_image(read_entry(entry)())
    ratio = low_res_ratio(describe_prior(UPSCALER)) or 1
    side = ratio * THUMBNAIL
    thumbnail = resize_and_crop(image, THUMBNAIL)
    show(f"{entry.key}, shrunk to {THUMBNAIL}x{THUMBNAIL} pixels, enlarged to {side}x{side}")
    write_png(folder.original, resize_and_crop(image, side))
    write_png(folder.bicubic, enlarged(thumbnail, (side, side)))
    write_png(folder.thumbnail / "thumbnail.png", thumbnail)


def largest_image(entries: Sequence[Entry]) -> Entry:
    """The image with the longest short side; UserError where none can be read."""
    sides = {}
    for number, entry in enumerate(entries):
        with suppress(ImageError):
            sides[number] = min(image_size(io.BytesIO(read_entry(entry)())))
    if not sides:
        raise UserError("None of the photographs can be read.")
    return entries[max(sides, key=lambda number: sides[number])]


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


def _settings(flags: DemoFlags) -> dict[str, Any]:
    """What decides the demo's output; fingerprint and hashes, since bundled weights may change."""
    return {
        "images": None if flags.images is None else str(flags.images.resolve()),
        "tokenizer": flags.tokenizer,
        "fingerprint": load_tokenizer(flags.tokenizer).fingerprint,
        "image_size": flags.image_size,
        "steps": flags.steps,
        "samples": flags.samples,
        "priors": {
            name: hash_file(find_prior(name) / "model.safetensors")
            for name in (BASE, UPSCALER)
            if name in bundled_priors()
        },
    }


def set_aside(out: Path, settings: dict[str, Any]) -> Path | None:
    """Rename the folder of a demo with other settings; its new name, or None if there is none."""
    path = DemoFolder(out).settings
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
