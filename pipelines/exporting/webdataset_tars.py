"""WebDataset tars: one of each shard, its samples named for their rows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ops.files import atomic_path
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.shard_rows import ShardRows

Sample = Mapping[str, str | bytes]  # its name at "__key__", the content of its members by suffix


def write_tar(path: Path, samples: Iterable[Sample]) -> None:
    """A tar of samples that appears whole; the same samples give the same bytes."""
    from webdataset import TarWriter  # here, since most commands write none

    # Without times and owners, and without encoding what are bytes already.
    fixed = {"mtime": 0, "user": "", "group": "", "mode": 0o644, "encoder": False}
    with (
        atomic_path(path) as partial,
        open(partial, "xb") as file,
        TarWriter(file, **fixed) as tar,
    ):
        for sample in samples:
            tar.write(sample)


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """An array as the content of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


class WebDatasetTars(ExportFormat):
    """`32x32-00000.tar`: of each row codes.npy, json, cls where it has a label, TRACK.npy."""

    def write(self, rows: ShardRows, folder: Path) -> None:
        write_tar(folder / f"{rows.name}.tar", _samples(rows))


def _samples(rows: ShardRows) -> Iterator[Sample]:
    for place, facts in enumerate(rows.facts()):
        # By the row: keys have dots and slashes, and all views of an image have the same.
        sample: dict[str, str | bytes] = {"__key__": f"{rows.shard.grid}-{facts['row']:09d}"}
        sample["json"] = json.dumps(facts, ensure_ascii=False).encode()
        sample["codes.npy"] = npy_bytes(rows.codes[place])
        if facts["label"] is not None:
            sample["cls"] = str(facts["label"]).encode()
        for name, track in rows.tracks.items():
            if track.present[place]:
                sample[f"{name}.npy"] = npy_bytes(track.values[place])
        yield sample
