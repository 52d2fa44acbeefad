"""Further tracks of a code store: what a run is asked for, and what the store already has.

A track's rows lie beside the images' under the same numbers. It has its own books (plan, index,
staging folder, checksums, tokenizer) and remembers where its input lies, so that later images get
their rows in all tracks.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ops.config import ConfigError, Registry
from ops.files import fsync_path, make_folders, write_json_if_changed
from pipelines.planning import Plan, Task, read_plan
from pipelines.store import (
    TRACKS,
    StoreError,
    committed_tasks,
    forget_missing,
    keep_tokenizer,
    publish_committed,
    remove_partials,
    source_path,
    staging_path,
    track_path,
)
from pipelines.tracks.plan import FindPartners, align_plan, failed_tasks, kept_tracks
from tokenizer import VQGAN

NAME = re.compile(r"[a-z][a-z0-9_]*")
#: Names that mean something else in a store or in a batch of it.
TAKEN = ("image", "codes", "label", "key", "true_edges", "place", "crop")


class Input(NamedTuple):
    """What a run may read of a track, or of all."""

    name: str
    value: str  # a path, or the ratio of low_res
    tokenizer: str | None  # of the track, if one was named
    images: Path  # what --in says
    image_tokenizer: VQGAN


class Track(ABC):
    """One further track while a run adds it or keeps it up; raises UserError for a wrong input.

    Made before anything is written, so that what cannot be read is told first.
    """

    def __init__(self, root: Path, asked: Input) -> None:
        self.root, self.name, self.value = root, asked.name, asked.value
        self.track_dir = track_path(root, asked.name)
        older = read_plan(self.track_dir)
        self.older = None if older is None else older.settings.track
        self.tokenizer: VQGAN | None = None
        #: Lines of the input that say nothing, with the reasons.
        self.bad: list[tuple[str, str]] = []

    @abstractmethod
    def provenance(self, images: dict[str, Any]) -> dict[str, Any]:
        """What made the track's rows, given the provenance of the images'."""

    @abstractmethod
    def partners(self, images: Plan) -> FindPartners:
        """What finds what belongs to planned images."""

    @property
    @abstractmethod
    def reads(self) -> Mapping[str, Path]:
        """Paths that every node must see, by flag."""

    def check_same(self, name: str, asked: object) -> None:
        """Raises StoreError where the track was begun with another value of its provenance."""
        if self.older is not None and self.older.get(name) != asked:
            raise StoreError(
                f"{self.root}: track {self.name} was begun with {name} {self.older.get(name)}, "
                f"asked for {asked}. Ask for the same, or name another track."
            )

    def plan(self, images: Plan, retry_failed: bool) -> Plan:
        """Plan a row for each that the images have, and open again what must be done anew."""
        make_folders(staging_path(self.track_dir))
        for folder in (self.track_dir, self.root / TRACKS, self.root):
            fsync_path(folder)  # an earlier run may have been killed before it did this
        remove_partials(self.track_dir)
        forget_missing(self.track_dir)
        write_json_if_changed(source_path(self.track_dir), {"source": self.value})
        if self.tokenizer is not None:
            assert self.tokenizer.folder is not None  # it was loaded from one
            keep_tokenizer(self.track_dir, self.tokenizer.folder)
        retried = failed_tasks(self.track_dir) if retry_failed else set()
        made = self.provenance(images.settings.track)
        plan = align_plan(self.root, images, self.track_dir, made, self.partners(images), retried)
        publish_committed(self.track_dir)
        return plan


#: Kinds of tracks by name; any other name is a folder of files that a tokenizer encodes.
TRACK_KINDS: Registry[type[Track]] = Registry("track")
FILES = "files"


def open_tracks(
    root: Path,
    images: Path,
    tokenizer: VQGAN,
    asked: Sequence[str],
    tokenizers: Sequence[str],
) -> tuple[list[Track], list[str]]:
    """The tracks that a run adds or keeps up, and a line for each that it must leave behind.

    `asked` and `tokenizers` are NAME=VALUE. Raises ConfigError for others, UserError where an
    input that was asked for cannot be read.
    """
    values, named = _pairs("--track", asked), _pairs("--track-tokenizer", tokenizers)
    kept = kept_tracks(root)
    for name in sorted(named.keys() - values.keys() - set(kept)):
        raise ConfigError(f"--track-tokenizer {name}=...: no --track {name}=... says what to read.")
    tracks, behind = [], []
    for name in sorted({*values, *kept}):
        value = values.get(name) or _recorded(track_path(root, name))
        if value is None or (name not in values and not _still_there(value)):
            behind.append(
                f"track {name} is not kept up: {value or 'its input'} is gone. New images have no "
                f"rows in it until --track {name}=... says where it is"
            )
            continue
        kind = TRACK_KINDS[name if name in TRACK_KINDS else FILES]
        tracks.append(kind(root, Input(name, value, named.get(name), images, tokenizer)))
    return tracks, behind


def waiting_tasks(root: Path, plan: Plan) -> list[Task]:
    """The tasks of a store's or a track's plan that are not committed."""
    committed = committed_tasks(root)
    return [task for task in plan.tasks if (task.grid, task.number) not in committed]


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and value and NAME.fullmatch(name)) or name in TAKEN or name == FILES:
            raise ConfigError(
                f"{flag} {text}: say NAME=VALUE, for instance segmentation=segs/; names are lower "
                f"case, and none of {', '.join((*TAKEN, FILES))}."
            )
        if name in pairs:
            raise ConfigError(f"{flag} names {name} twice.")
        pairs[name] = value
    return pairs


def _recorded(track_dir: Path) -> str | None:
    """Where the last run found a track's input."""
    try:
        value = json.loads(source_path(track_dir).read_bytes())["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None


def _still_there(value: str) -> bool:
    return not Path(value).is_absolute() or Path(value).exists()
