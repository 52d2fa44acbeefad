"""Export: a code store's rows as the files of another library, one shard after the other.

A task is one shard of the store. Its rows that are current (ok, not replaced, not removed) are
read with their labels and further tracks, checked against their checksums, and written by one of
FORMATS; then a record of the shard appears, so that a killed run goes on with the next one. What
lies in the folder does not depend on the number of workers or on kills. Read job.py first, then
formats.py and one of the formats.
"""

from pipelines.exporting.images import image_strips
from pipelines.exporting.job import export_store
from pipelines.exporting.webdataset_tars import npy_bytes, write_tar

__all__ = ["export_store", "image_strips", "npy_bytes", "write_tar"]
