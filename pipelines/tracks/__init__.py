"""Further tracks of a code store: rows that belong to the images' rows, under the same numbers.

A track's input (a folder of label maps, a file of annotations, a ratio) comes in; rows of codes or
of plain numbers go into the store, planned and committed like the images'. Tracks of codes are
encoded by the same workers as the images, tracks of numbers by the driver. Read track.py first,
then flags.py, which makes tracks of the command line; the condition of a name decides its kind of
track (pipelines/conditioning).
"""

from pipelines.tracks.annotations import AnnotationTrack, Numbers, points_in_view
from pipelines.tracks.code_grids import FileTrack, LowResTrack, OwnTokenizerTrack
from pipelines.tracks.flags import open_tracks
from pipelines.tracks.plan import check_as_planned, store_attributes
from pipelines.tracks.report import lacking
from pipelines.tracks.track import Track, TrackInput, waiting_tasks
from pipelines.tracks.verification import verify_store

__all__ = [
    "AnnotationTrack",
    "FileTrack",
    "LowResTrack",
    "Numbers",
    "OwnTokenizerTrack",
    "Track",
    "TrackInput",
    "check_as_planned",
    "lacking",
    "open_tracks",
    "points_in_view",
    "store_attributes",
    "verify_store",
    "waiting_tasks",
]
