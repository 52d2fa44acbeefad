"""Further tracks of a code store: rows that belong to the images' rows, under the same numbers.

A track's input (a folder of label maps, a file of annotations, a ratio) comes in; rows of codes or
of plain numbers go into the store, planned and committed like the images'. Tracks of codes are
encoded by the same workers as the images, tracks of numbers by the driver. `encode_tracks` does a
whole run of encode: the images, then every further track. Read encode_store.py first, then track.py
and flags.py; the condition of a name decides its kind of track (pipelines/conditioning).
"""

from pipelines.tracks.annotations import AnnotationTrack, Numbers, points_in_view
from pipelines.tracks.code_grids import LowResTrack, OwnTokenizerTrack
from pipelines.tracks.encode_store import encode_tracks
from pipelines.tracks.report import lacking
from pipelines.tracks.track import Track, TrackInput
from pipelines.tracks.verification import verify_store

__all__ = [
    "AnnotationTrack",
    "LowResTrack",
    "Numbers",
    "OwnTokenizerTrack",
    "Track",
    "TrackInput",
    "encode_tracks",
    "lacking",
    "points_in_view",
    "verify_store",
]
