"""Generation: samples of a prior, decoded to images, in a folder that can be resumed and extended.

The flags become a GenerationRequest, whose deciding settings are recorded in the folder.
`generate_samples` divides the samples into tasks and runs those that are not finished. A worker
samples and decodes one task, keeping finished samples in partial shards, and commits its PNGs, tar,
codes and index file. With --upscale, `generate_cascade` does so once a stage. Read job.py
first, then worker.py and resume.py.
"""

from pipelines.generation.cascade import generate_cascade
from pipelines.generation.code_store import GENERATED, codes_path
from pipelines.generation.flags import GenerateFlags
from pipelines.generation.index import GIVEN_UP, read_index, read_made_in, read_parts, sample_name
from pipelines.generation.job import generate_samples
from pipelines.generation.outputs import MAX_MEMBER_BYTES, read_members

__all__ = [
    "GENERATED",
    "GIVEN_UP",
    "GenerateFlags",
    "MAX_MEMBER_BYTES",
    "codes_path",
    "generate_cascade",
    "generate_samples",
    "read_index",
    "read_made_in",
    "read_members",
    "read_parts",
    "sample_name",
]
