"""A further track of a code store, while a run adds it or extends it.

A track's rows have the numbers of the images' rows. It has a track directory of its own (plan,
index, staging folder, checksums, tokenizer) and records the path of its input, so that later
images get their rows in all tracks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import pyarrow.compute as pc
import torch

from ops import paths
from ops.config import ConfigError, from_json
from ops.images import Transform
from ops.paths import AnyPath
from ops.text import printable
from pipelines.encoding import NO_PARTNER
from pipelines.jobs import precision_of
from pipelines.planning import Plan, Task, read_plan, task_table
from pipelines.store import (
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
from pipelines.tracks.plan import FindPartners, align_plan, failed_tasks
from tokenizer import VQGAN

NAMED = 3  # names in a message
#: What encode records of a track of codes, besides its tokenizer, with the type.
RECORDED = {
    "transform": dict, "batch_size": int, "threads": int, "convolution": str, "device": str,
}  # fmt: skip


class TrackInput(NamedTuple):
    """What a run may read for a track."""

    name: str
    value: str  # a path, or the ratio of low_res
    tokenizer: str | None  # of the track, if one was named
    images: Mapping[str, AnyPath]  # by flag, what every node of a cluster must see of --in
    image_tokenizer: VQGAN


class Track(ABC):
    """One further track of the store at `root`; a subclass is a kind of track.

    Made before anything is written, so that input that cannot be read is reported first: raises
    UserError for it.
    """

    own_tokenizer: ClassVar[bool] = False
    """Whether it must have a tokenizer of its own, since the images' does not fit."""

    def __init__(self, root: AnyPath, asked: TrackInput) -> None:
        self.root, self.name, self.value = root, asked.name, asked.value
        self.track_dir = track_path(root, asked.name)
        older = read_plan(self.track_dir)
        #: The provenance of the track that the store has already, if any.
        self.older = None if older is None else older.settings.track
        if self.older is not None and "row_shape" not in self.older:
            check_made_by_encode(self.track_dir, self.older)
        self.tokenizer: VQGAN | None = None
        #: (where, why) of each line of the input that cannot be used.
        self.bad: list[tuple[str, str]] = []

    @abstractmethod
    def provenance(self, images: dict[str, Any]) -> dict[str, Any]:
        """What made the track's rows, given the provenance of the images'."""

    @abstractmethod
    def partners(self, images: Plan) -> FindPartners:
        """A function that finds the partners of planned images."""

    def names(self) -> Sequence[str]:
        """The first names that the input has for partners, for messages."""
        return ()

    @property
    @abstractmethod
    def reads(self) -> Mapping[str, AnyPath]:
        """Paths that every node must see, by flag."""

    def check_same(self, name: str, asked: object) -> None:
        """Raises StoreError where the track was begun with another value of its provenance."""
        if self.older is not None and self.older.get(name) != asked:
            raise StoreError(
                f"{self.root}: track {self.name} was begun with {name} {self.older.get(name)}, "
                f"asked for {asked}. Ask for the same, or name another track."
            )

    def plan(self, images: Plan, retry_failed: bool) -> Plan:
        """Plan a row for each of the images' rows, and reopen the tasks whose partners changed.

        Raises ConfigError where no image has a partner.
        """
        partners = self.partners(images)
        self._check_partners(images, partners)
        paths.make_folder(staging_path(self.track_dir))
        paths.flush_up(self.track_dir, self.root)  # an earlier run may have been killed before this
        remove_partials(self.track_dir)
        forget_missing(self.track_dir)
        paths.write_json_if_changed(source_path(self.track_dir), {"source": self.value})
        if self.tokenizer is not None:
            assert self.tokenizer.folder is not None  # it was loaded from one
            keep_tokenizer(self.track_dir, self.tokenizer.folder)
        retried = failed_tasks(self.track_dir) if retry_failed else set()
        made = self.provenance(images.settings.track)
        plan = align_plan(self.root, images, self.track_dir, made, partners, retried)
        publish_committed(self.track_dir)
        return plan

    def _check_partners(self, images: Plan, partners: FindPartners) -> None:
        """Raise ConfigError where no image has a partner: the names must then be others."""
        keys: list[str] = []
        for task in images.tasks:
            planned = task_table(self.root, task)
            if not pc.all(pc.equal(partners(planned)["etag"], NO_PARTNER)).as_py():
                return
            keys = [*keys, *planned["key"].slice(0, NAMED).to_pylist()][:NAMED]
        raise ConfigError(
            f"--track {self.name}={self.value}: none of the {images.num_rows} rows of images has a "
            f"partner there. Looked for names such as {_quoted(keys)}, with any suffix; there are "
            f"{_quoted(self.names()) or 'none'}."
        )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(printable(repr(name), 100) for name in names[:NAMED])


def check_made_by_encode(path: AnyPath, provenance: Mapping[str, Any]) -> None:
    """Raise StoreError where the store or track at `path` lacks what encode records of it."""
    for name, kind in RECORDED.items():
        if not isinstance(provenance.get(name), kind):
            raise StoreError(f"{path} was not made by encode: its plan records no {name}.")
    try:
        from_json(Transform, provenance["transform"])
        torch.device(provenance["device"])
        precision_of(provenance)
    except (ValueError, TypeError, RuntimeError) as error:
        raise StoreError(f"{path} was not made by encode: {error}") from error


def waiting_tasks(root: AnyPath, plan: Plan) -> list[Task]:
    """The tasks of a store's or a track's plan that are not committed."""
    committed = committed_tasks(root)
    return [task for task in plan.tasks if (task.grid, task.number) not in committed]
