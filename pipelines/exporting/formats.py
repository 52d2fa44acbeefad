"""FORMATS: what a store can be exported to. A further one is a file of its own and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ops.config import ConfigError
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.images import Images
from pipelines.exporting.litdata_chunks import LitDataChunks
from pipelines.exporting.mds_shards import MDSShards
from pipelines.exporting.npy_files import NpyFiles
from pipelines.exporting.parquet_files import ParquetFiles
from pipelines.exporting.webdataset_tars import WebDatasetTars

FORMATS: Mapping[str, type[ExportFormat]] = {
    "webdataset": WebDatasetTars,
    "parquet": ParquetFiles,
    "npy": NpyFiles,
    "litdata": LitDataChunks,
    "mds": MDSShards,
    "images": Images,
}


def format_named(name: str) -> type[ExportFormat]:
    """The format, its library found; ConfigError where there is none, or its library is missing."""
    if name not in FORMATS:
        raise ConfigError(f"No format {name!r} for --to; there are {', '.join(FORMATS)}.")
    found = FORMATS[name]
    try:
        if found.library:
            importlib.import_module(found.library)
    except ImportError as error:
        raise ConfigError(
            f"--to {name} needs a library that cannot be imported ({error}). Install it with "
            f"pip install 'smalti[{name}]'."
        ) from error
    return found
