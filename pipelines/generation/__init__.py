"""Generation: samples of a prior, decoded to images, in a folder that can be resumed and extended.

The flags become a GenerationRequest, whose deciding settings are recorded in the folder. Samples
are divided into tasks; `GenerationWorker` samples and decodes one task, keeping finished samples
in partial shards, and commits its PNGs, tar, codes and index file. `Folder` finds what is missing.
Read settings.py first, then worker.py and resume.py.
"""

from pipelines.generation.code_store import GENERATED, codes_path, finish_store, prepare_store
from pipelines.generation.contact_sheet import remove_grids, write_grids
from pipelines.generation.flags import GenerateFlags, check_flags, make_request
from pipelines.generation.index import (
    failed_lines,
    part_path,
    read_index,
    read_parts,
    sample_name,
)
from pipelines.generation.preview import preview_path
from pipelines.generation.resume import Folder, empty_staging, kept_samples, remove_partials
from pipelines.generation.settings import (
    GenerationRequest,
    check_record,
    deciding_settings,
    read_record,
    write_record,
)
from pipelines.generation.worker import GenerationWorker, quarantine

__all__ = [
    "Folder",
    "GENERATED",
    "GenerateFlags",
    "GenerationRequest",
    "GenerationWorker",
    "check_flags",
    "check_record",
    "codes_path",
    "deciding_settings",
    "empty_staging",
    "failed_lines",
    "finish_store",
    "kept_samples",
    "make_request",
    "part_path",
    "prepare_store",
    "preview_path",
    "quarantine",
    "read_index",
    "read_parts",
    "read_record",
    "remove_grids",
    "remove_partials",
    "sample_name",
    "write_grids",
    "write_record",
]
