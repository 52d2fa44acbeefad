"""?"""

from pipelines.tracks.annotations import GeometryTrack
from pipelines.tracks.base import Track, open_tracks, waiting_tasks
from pipelines.tracks.code_grids import FileTrack, LowResTrack
from pipelines.tracks.plan import check_as_planned, store_attributes
from pipelines.tracks.report import lacking
from pipelines.tracks.verification import verify_store

__all__ = [
    "FileTrack",
    "LowResTrack",
    "GeometryTrack",
    "Track",
    "check_as_planned",
    "lacking",
    "open_tracks",
    "store_attributes",
    "verify_store",
    "waiting_tasks",
]
