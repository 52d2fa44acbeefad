"""What --help says of each condition. The texts lie apart from the conditions' code, which takes
seconds to import; test_notes.py holds that every condition has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ConditionNote(NamedTuple):
    """What --help says of a condition."""

    training: str = "the stores' track of this name"
    """what a prior is trained on; empty where no prior is trained with it"""
    sampling: str = ""
    """the input of samples; empty where it is not given by files"""


LINES = "JSON lines, in pixels of the image"
CONDITION_NOTES: Mapping[str, ConditionNote] = {
    "boxes": ConditionNote(sampling=LINES),
    "class": ConditionNote("the folder an image is in, or a track of classes"),
    "coordinates": ConditionNote("the position of the window in the image"),
    "depth": ConditionNote(sampling="depth maps"),
    "half": ConditionNote("", "images whose upper half is kept, for any prior"),
    "inpaint": ConditionNote(
        "the codes around random masks", "images, transparent where to inpaint"
    ),
    "keypoints": ConditionNote(sampling=LINES),
    "low_res": ConditionNote(sampling="small images"),
    "segmentation": ConditionNote(sampling="label maps"),
    "sos": ConditionNote("nothing: an unconditional prior"),
}


def training_help() -> str:
    """The help of `train_prior --conditions`, with a note on each condition."""
    notes = _listed({name: note.training for name, note in CONDITION_NOTES.items()})
    return f"what the prior is conditioned on, one or several of {notes}"


def sampling_help() -> str:
    """The help of `generate --condition`, with a note on each condition."""
    notes = _listed({name: note.sampling for name, note in CONDITION_NOTES.items()})
    return (
        f"NAME=PATH of a condition that the prior was trained with: {notes}. PATH is a file, or a "
        "folder of files that are assigned to the samples in turn; once for each condition"
    )


def _listed(notes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({note})" for name, note in notes.items() if note)
