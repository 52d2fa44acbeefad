"""The sections of a report: one for each code store, training run or samples folder."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from ops.config import UserError, from_json
from ops.images import ImageArray, ImageError, Transform, to_image, to_pixels
from ops.metrics import codebook_usage, psnr
from ops.metrics_log import read_metrics
from ops.paths import AnyPath, ObjectPath, exists, is_folder, join, matching, read_json_at
from pipelines.generation import GENERATED
from pipelines.reports.originals import Originals
from pipelines.reports.plots import curve_plot, file_uri, image_uri, usage_plot
from pipelines.reports.samples import folders_in, index_facts, sample_images
from pipelines.store import (
    CodeStore,
    committed_tasks,
    grid_shape,
    read_environments,
    refuse_links,
    summarise_environments,
)
from pipelines.tracks import lacking
from tokenizer import VQGAN, load_tokenizer

PAIRS = 12  # originals with their reconstructions
CANDIDATES = 1000  # rows among which those are chosen
MAX_IMAGES = 24  # of one folder
MAX_FAILED = 200  # failed rows listed
MAX_DECODED = 1 << 26  # pixels of a row that is decoded
MAX_LEVELS = 8  # of nested settings
COUNTED_ROWS = 65_536  # code usage of a larger store is counted on as many evenly spaced rows
TIMINGS = "timings.json"  # [{"stage": ..., "seconds": ...}], written by the demo
RUN_IMAGE = re.compile(r"(.+)-(\d{8})\.png")


class ReportError(UserError):
    """A folder with nothing to report."""


@dataclass(frozen=True)
class Figure:
    """Images side by side, as data URIs, with one caption; a wide figure spans the page."""

    sources: tuple[str, ...]
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells; without a head, the first cell of each row is its heading."""

    rows: Sequence[tuple[str, ...]]
    head: tuple[str, ...] = ()


@dataclass
class Section:
    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def sections_of(path: AnyPath, by_content: bool = False) -> list[Section]:
    """The sections about `path`, else about the folders in it; raises ReportError if none.

    `by_content`: see Originals.
    """
    if not is_folder(path):
        raise ReportError(f"{path} is not a folder. Name a run, a code store or samples.")
    sections = list(_own_sections(path, by_content))
    if not sections:
        children = sorted(folders_in(path))
        found = [section for child in children for section in _own_sections(child, by_content)]
        order = ("Samples", "Codes", "Training")  # images first
        sections = sorted(found, key=lambda section: order.index(section.title.split(":")[0]))
    if not sections:
        raise ReportError(
            f"{path} holds no code store (zarr.json), no run (metrics.jsonl) and no samples "
            "(generation.json), and neither do the folders in it."
        )
    if exists(join(path, TIMINGS)):
        sections.append(timings_section(join(path, TIMINGS)))
    return sections


def _own_sections(path: AnyPath, by_content: bool) -> Iterator[Section]:
    if exists(join(path, "zarr.json")):
        yield store_section(path, by_content)
    if exists(join(path, "metrics.jsonl")):
        yield run_section(path)
    if exists(join(path, "generation.json")):
        yield samples_section(path)


# --- a code store


def store_section(path: AnyPath, by_content: bool = False) -> Section:
    """Summary, originals and reconstructions, code usage, failed rows."""
    store = CodeStore.open(path)
    section = Section(f"Codes: {path.name}")
    provenance = store.provenance["image"]
    size, factor = provenance["codebook_size"], provenance["downsample_factor"]
    section.tables.append(Table(_store_facts(store)))
    if len(store):
        originals = Originals(store, by_content)
        section.figures += _reconstructions(store, originals)
        section.text.append(_about_figures(originals, "generated" in provenance))
        section.figures.append(_usage_figure(store, size, factor))
    if len(store.failed):
        section.text.append(f"{len(store.failed):,} rows have no codes; the last table says why.")
        section.tables.append(_failed_rows(store))
    return section


def _about_figures(originals: Originals, generated: bool) -> str:
    """What the page contains: codes that were decoded, or also files of this machine."""
    if generated:
        return "Some of the generated codes, decoded."
    if not originals.folders:
        return "Some codes, decoded. This page contains no file from outside the store."
    return (
        "Left: the image that was encoded, where it is still there, unchanged. Right: its codes, "
        f"decoded. This page contains images read from {', '.join(sorted(originals.folders))}, "
        "which the store's plan lists."
    )


def _failed_rows(store: CodeStore) -> Table:
    lines = store.failed.select(["key", "status", "error"]).to_pylist()
    views = Counter((line["key"], line["status"], line["error"] or "") for line in lines)
    rows = [(*why, str(count)) for why, count in list(views.items())[:MAX_FAILED]]
    if len(views) > MAX_FAILED:
        rows.append((f"and {len(views) - MAX_FAILED:,} more", "", "", ""))
    return Table(rows, ("image", "status", "reason", "rows"))


def _store_facts(store: CodeStore) -> list[tuple[str, str]]:
    provenance = store.provenance["image"]
    size, factor = provenance["codebook_size"], provenance["downsample_factor"]
    bits = math.log2(size) / factor**2
    encoded = store.index.filter(pc.equal(store.index["status"], "ok"))
    facts = [
        ("images", f"{pc.count_distinct(encoded['source']).as_py():,}"),
        ("rows of codes", ", ".join(f"{n:,} of {grid}" for grid, n in store.grids.items()) or "0"),
        ("rows failed", f"{len(store.failed):,}"),
        ("tokenizer", f"{provenance['tokenizer']}, fingerprint {provenance['fingerprint']}"),
        ("codebook", f"{size:,} codes, one for {factor}x{factor} pixels"),
        ("bits a pixel", f"{bits:.3f} (an 8-bit RGB pixel has 24: {24 / bits:.0f} times fewer)"),
    ]
    parts = [read_environments(store.path, *task) for task in sorted(committed_tasks(store.path))]
    facts += [("made with", line) for line in summarise_environments(parts)]
    facts += [(f"track {name}", _track_fact(store, name)) for name in store.track_names]
    if store.label_names:
        facts.append(("classes", ", ".join(store.label_names)))
    return facts + [(name, text) for name, text in _facts(provenance) if "transform" in name]


def _track_fact(store: CodeStore, name: str) -> str:
    lack, provenance = lacking(store, name), store.provenance[name]
    made = ""
    if "tokenizer" in provenance:
        made = f" by tokenizer {provenance['tokenizer']}, fingerprint {provenance['fingerprint']}"
    return f"{lack.rows:,} rows{made}{lack.summary}"


def _reconstructions(store: CodeStore, originals: Originals) -> list[Figure]:
    tokenizer = load_tokenizer(store.tokenizer_folder)
    transform = _transform(store.provenance["image"])
    chosen = _rows_of_different_images(store)
    spread = sorted({round(i) for i in np.linspace(0, len(chosen) - 1, PAIRS)})
    return [_pair(chosen[i], tokenizer, transform, originals) for i in spread]


def _rows_of_different_images(store: CodeStore) -> list[dict[str, Any]]:
    """Evenly spaced rows of the store, at most one of each source image."""
    positions = sorted({round(i) for i in np.linspace(0, len(store) - 1, CANDIDATES)})
    by_source: dict[str, dict[str, Any]] = {}
    for position in positions:
        row = store[position]
        by_source.setdefault(row["source"], row)
    return list(by_source.values())


def _transform(provenance: Mapping[str, Any]) -> Transform | None:
    stated = provenance.get("transform")
    return from_json(Transform, stated) if isinstance(stated, Mapping) else None


def _pair(
    row: Mapping[str, Any], tokenizer: VQGAN, transform: Transform | None, originals: Originals
) -> Figure:
    codes = torch.from_numpy(row["codes"].astype(np.int64))[None]
    name = f"{row['key']}: {codes.numel():,} codes"
    if codes.numel() * tokenizer.config.downsample_factor**2 > MAX_DECODED:
        return Figure((), f"{name}, too large to be decoded here")
    with torch.inference_mode():
        pixels = tokenizer.decode(codes)
    decoded = image_uri(to_image(pixels)[0])
    if row["source"].startswith(GENERATED):
        return Figure((decoded,), name)
    original = _original(row, transform, tokenizer.config.downsample_factor, originals)
    if original is None:
        return Figure((decoded,), f"{name}; the original is no longer there, or has changed")
    quality = float(psnr(to_pixels(original), pixels)[0])
    return Figure((image_uri(original), decoded), f"{name}, {quality:.1f} dB")


def _original(
    row: Mapping[str, Any], transform: Transform | None, factor: int, originals: Originals
) -> ImageArray | None:
    """The image that was encoded, cut from its file again; None if that is no longer there."""
    data = None if transform is None else originals.read(row)
    if transform is None or data is None:
        return None
    rows, columns = grid_shape(row["grid"])
    try:
        size = (rows * factor, columns * factor)
        return transform.read(data, size, view=row["view"], key=row["key"]).image
    except ImageError:
        return None


def _usage_figure(store: CodeStore, codebook_size: int, factor: int) -> Figure:
    counts = np.zeros(codebook_size, np.int64)
    num_counted = 0
    for grid, total in store.grids.items():
        share = max(1, COUNTED_ROWS * total // len(store))
        rows = store.ok_rows(grid)[:: -(-total // share)]
        for batch in np.array_split(rows, -(-len(rows) // 4096)):
            counts += np.bincount(store.read(grid, batch).ravel(), minlength=codebook_size)
        num_counted += len(rows)
    usage = codebook_usage(torch.from_numpy(counts))
    sampled = "" if num_counted == len(store) else f" (counted on {num_counted:,} rows)"
    return Figure(
        (usage_plot(counts),),
        f"Code usage{sampled}: {usage.used:,} of {codebook_size:,} codes occur, perplexity "
        f"{usage.perplexity:,.0f}; entropy {usage.bits:.2f} bits a code, "
        f"{usage.bits / factor**2:.3f} bits a pixel.",
    )


# --- a training run


def run_section(path: AnyPath) -> Section:
    """Curves of metrics.jsonl, the newest images, the settings."""
    section = Section(f"Training: {path.name}")
    lines = read_metrics(join(path, "metrics.jsonl"))
    for name in _metric_names(lines):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        caption = f"{name}: {values[-1]:.4g} after {steps[-1]:,} steps"
        section.figures.append(Figure((curve_plot(steps, values, name),), caption))
    for image in _newest_images(join(path, "samples")):
        name = image.name.rpartition(".")[0]
        section.figures.append(Figure((file_uri(image),), name, wide=True))
    if exists(join(path, "run.json")):
        section.tables.append(Table(_settings(join(path, "run.json"))))
    return section


def _metric_names(lines: Sequence[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for line in lines for name in line)
    losses = [name for name in names if name.endswith("loss")]
    return [*losses, *(name for name in names if name not in ("step", *losses))]


def _newest_images(folder: AnyPath) -> list[AnyPath]:
    newest: dict[str, AnyPath] = {}
    if not isinstance(folder, ObjectPath) and folder.is_symlink():  # to images elsewhere
        return []
    for path in sorted(matching(folder, "*.png")):
        match = RUN_IMAGE.fullmatch(path.name)
        newest[match[1] if match else path.name] = path
    return list(newest.values())[:MAX_IMAGES]


# --- samples


def samples_section(path: AnyPath) -> Section:
    """The samples of a folder, the counts of its index, and the settings that made them."""
    section = Section(f"Samples: {path.name}")
    refuse_links(path)
    images, total = sample_images(path, MAX_IMAGES)
    for sample in images:
        sizes = f": {', '.join(sample.stages)}, then enlarged" if sample.stages else ""
        wide = len(images) == 1 or len(sample.sources) > 2
        section.figures.append(Figure(sample.sources, f"{sample.name}{sizes}", wide))
    if total > MAX_IMAGES:
        section.text.append(f"The first {MAX_IMAGES} of {total:,} images.")
    statuses, failed = index_facts(path)
    if statuses:
        section.tables.append(Table(statuses))
    if failed:
        rows = failed[:MAX_FAILED]
        if len(failed) > MAX_FAILED:
            rows.append((f"and {len(failed) - MAX_FAILED:,} more", "", ""))
        section.tables.append(Table(rows, ("sample", "status", "reason")))
    section.tables.append(Table(_settings(join(path, "generation.json"))))
    return section


# --- the demo


def timings_section(path: AnyPath) -> Section:
    """Seconds of each stage of the demo, and their sum."""
    try:
        stages = [
            (str(stage["stage"]), float(stage["seconds"]))
            for stage in read_json_at(path, follow=False)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path} cannot be read: {error}.") from error
    rows = [(name, f"{seconds:.1f} s") for name, seconds in stages]
    rows.append(("total", f"{sum(seconds for _, seconds in stages):.1f} s"))
    return Section("Timings", tables=[Table(rows)])


def _settings(path: AnyPath) -> list[tuple[str, str]]:
    """The settings in a JSON file as rows; raises ReportError where it has none."""
    try:
        data = read_json_at(path, follow=False)
        if not isinstance(data, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}.") from error
    return list(_facts(data))


def _facts(data: Mapping[str, Any], prefix: str = "", level: int = 1) -> Iterator[tuple[str, str]]:
    """Nested settings as rows: {"a": {"b": 1}} gives ("a.b", "1")."""
    for name, value in data.items():
        if level == MAX_LEVELS and isinstance(value, Mapping | list):
            yield f"{prefix}{name}", "..."
        elif isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{name}.", level + 1)
        elif value is not None:
            items = value if isinstance(value, list) else [value]
            nested = any(isinstance(item, Mapping | list) for item in items)
            yield f"{prefix}{name}", "..." if nested else ", ".join(map(str, items))
