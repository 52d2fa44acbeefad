"""Generation: samples of a prior, decoded to images, in a folder that can be resumed and extended.

The flags become a GenerationRequest, whose deciding settings are recorded in the folder.
`generate_samples` divides the samples into tasks and runs those that are not finished. A worker
samples and decodes one task, keeping finished samples in partial shards, and commits its PNGs, tar,
codes and index file. With --upscale, `generate_cascade` does so once a stage, and `sample_cascade`
does the same in memory. Read job.py first, then worker.py, resume.py and cascade.py.
"""

from pipelines.generation.cascade import STAGES, generate_cascade
from pipelines.generation.code_store import GENERATED, codes_path
from pipelines.generation.contact_sheet import GRID_IMAGES, grid_cells
from pipelines.generation.defaults import BASE, UPSCALER, class_names, with_defaults
from pipelines.generation.index import GIVEN_UP, read_index, read_made_in, read_parts, sample_name
from pipelines.generation.job import generate_samples
from pipelines.generation.outputs import MAX_MEMBER_BYTES, read_members
from pipelines.generation.prior_notes import prior_notes
from pipelines.generation.sample_cascade import sample_cascade
from pipelines.generation.stage_sizes import low_res_ratio

__all__ = [
    "BASE",
    "GENERATED",
    "GIVEN_UP",
    "GRID_IMAGES",
    "MAX_MEMBER_BYTES",
    "STAGES",
    "UPSCALER",
    "class_names",
    "codes_path",
    "generate_cascade",
    "generate_samples",
    "grid_cells",
    "low_res_ratio",
    "prior_notes",
    "read_index",
    "read_made_in",
    "read_members",
    "read_parts",
    "sample_cascade",
    "sample_name",
    "with_defaults",
]
