"""?"""

from pipelines.generation.code_store import NUM_SAMPLES, codes_path, finish_store, prepare_store
from pipelines.generation.contact_sheet import remove_grids, write_grids
from pipelines.generation.flags import GenerateFlags, check_flags, make_request
from pipelines.generation.index import (
    CRASHED,
    failed_lines,
    part_path,
    read_index,
    read_parts,
    sample_name,
)
from pipelines.generation.preview import preview_path
from pipelines.generation.resume import (
    Folder,
    empty_staging,
    kept_samples,
    lock_path,
    remove_partials,
)
from pipelines.generation.settings import (
    GenerationRequest,
    check_record,
    deciding_settings,
    read_record,
    record_path,
)
from pipelines.generation.worker import (
    Done,
    GenerationTask,
    GenerationWorker,
    quarantine,
    split_work,
)

__all__ = [
    "CRASHED",
    "Done",
    "Folder",
    "GenerateFlags",
    "GenerationRequest",
    "GenerationTask",
    "GenerationWorker",
    "NUM_SAMPLES",
    "check_flags",
    "check_record",
    "codes_path",
    "deciding_settings",
    "empty_staging",
    "failed_lines",
    "finish_store",
    "kept_samples",
    "lock_path",
    "make_request",
    "part_path",
    "prepare_store",
    "preview_path",
    "quarantine",
    "read_index",
    "read_parts",
    "read_record",
    "record_path",
    "remove_grids",
    "remove_partials",
    "sample_name",
    "split_work",
    "write_grids",
]
