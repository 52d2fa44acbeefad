"""The sections of the demo's report: the largest images first, then those of each smaller stage."""

from __future__ import annotations

from pathlib import Path

from pipelines.reports.plots import file_uri
from pipelines.reports.sections import (
    TIMINGS,
    Figure,
    ReportError,
    Section,
    run_section,
    samples_section,
    store_section,
    timings_section,
)


class DemoFolder:
    """The files and folders of a demo, whether they are there or not."""

    def __init__(self, root: Path) -> None:
        self.settings = root / "demo.json"
        self.timings = root / TIMINGS
        self.codes = root / "codes.zarr"  # of the photographs
        self.clothing = root / "clothing"  # samples of the bundled priors
        self.thumbnail = root / "thumbnail"  # one image, of which the next two are
        self.enlarged = root / "enlarged"  # a sample of a bundled prior
        self.original = root / "comparison" / "original.png"  # as large as that sample
        self.bicubic = root / "comparison" / "bicubic.png"
        self.prior = root / "prior"  # the run of a small prior
        self.samples = root / "samples"  # its samples


def demo_sections(path: Path, by_content: bool = False) -> list[Section]:
    """The sections about the stages that a demo's folder has; raises ReportError without any."""
    folder, sections = DemoFolder(path), []
    if _has_samples(folder.enlarged):
        sections.append(_enlarged(folder))
    if _has_samples(folder.clothing):
        section = samples_section(folder.clothing)
        section.title = "Clothing"
        section.text.insert(0, "Sampled whole by one bundled prior, then enlarged by another.")
        sections.append(section)
    if (folder.codes / "zarr.json").is_file():
        section = store_section(folder.codes, by_content)
        section.title = "Photographs and their codes"
        sections.append(section)
    if (folder.prior / "metrics.jsonl").is_file():
        sections.append(_first_minute(folder))
    if folder.timings.is_file():
        sections.append(timings_section(folder.timings))
    if not sections:
        raise ReportError(f"{path} has no stage of the demo yet. Run pipelines.demo again.")
    return sections


def _has_samples(path: Path) -> bool:
    return (path / "generation.json").is_file()


def _enlarged(folder: DemoFolder) -> Section:
    """The enlarged thumbnail, next to the photograph and to bicubic interpolation."""
    section = samples_section(folder.enlarged)
    section.title = "A thumbnail enlarged"
    sample = folder.enlarged / "sample-00000.png"
    if all(path.is_file() for path in (sample, folder.original, folder.bicubic)):
        section.figures = [
            Figure(
                (file_uri(other), file_uri(sample)), f"left: {what}; right: by the prior", wide=True
            )
            for other, what in (
                (folder.original, "the photograph, which the prior was not given"),
                (folder.bicubic, "the thumbnail enlarged by bicubic interpolation"),
            )
        ]
    return section


def _first_minute(folder: DemoFolder) -> Section:
    """The samples of the small prior, then the curves of its training."""
    run = run_section(folder.prior)
    section = Section("A first minute of training", tables=run.tables)
    section.text.append(
        "A small prior, trained on these photographs for about a minute. That is a beginning: it "
        "learns colours and textures. Shapes need more images, and hours."
    )
    if _has_samples(folder.samples):
        section.figures += samples_section(folder.samples).figures
    section.figures += run.figures
    return section
