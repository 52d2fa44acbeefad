"""Checks of a store after a power cut: before recovery, and once the command has run again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import zarr

from pipelines.store import CodeStore, StoreError
from tests.crashes.disk_doubles import installed
from tests.crashes.power_cuts import Moment, RecordingDisk

Codes = dict[tuple[str, int], bytes]  # by key and view


Tracks = dict[tuple[str, str, int], bytes]  # by name, key and view


def shown_tracks(store: Path) -> Tracks:
    """The rows of further tracks whose images are current, as a reader shows them.

    Between two tasks a track may still have the row of an image that has been replaced since; it
    belongs to that older image, and the reader does not show it for the newer one.
    """
    opened = CodeStore.open(store)
    images = {(row["grid"], row["row"]) for row in opened}
    return {
        (name, row["key"], row["view"]): row["codes"].tobytes()
        for name in opened.track_names
        for row in opened.track(name)
        if (row["grid"], row["row"]) in images
    }


class Command(Protocol):
    """A repeatable run of encode: Scenario or NullScenario."""

    @property
    def base(self) -> Path | None: ...
    def prepare(self, out: Path) -> Path: ...
    def run(self, out: Path) -> int: ...
    def run_here(self, out: Path) -> int: ...
    def differing(self, out: Path) -> list[str]: ...


def shown(store: Path) -> Codes:
    """The codes of every image, as a reader shows them."""
    return {(row["key"], row["view"]): row["codes"].tobytes() for row in CodeStore.open(store)}


# Of what was not flushed: nothing survives, or only the names, or only the contents.
EXTREMES = [(0, "lost"), (-1, "lost"), (-1, "zeros"), (-1, "short"), (0, "whole")]


def extremes(pending: int) -> Iterator[tuple[int, str]]:
    """Which of `pending` changes of names a cut keeps, as bits, and how it tears contents.

    Apart from EXTREMES, only one name survives, or all but one: a name and the file that it refers
    to may be in different folders.
    """
    yield from EXTREMES
    for change in range(pending):
        yield from [(1 << change, "whole"), (~(1 << change), "whole")]


class Recorded(NamedTuple):
    """A run of a command with all its moments; the last one is after its end."""

    command: Command
    moments: list[Moment]
    before: Codes  # that the reader showed before the run
    after: Codes
    tracks_before: Tracks
    tracks_after: Tracks

    def cut(self, folder: Path, moment: Moment, kept: int, tears: list[str]) -> Path:
        """The store in a fresh `folder` after a cut; bit i of `kept` is for pending name i."""
        shutil.rmtree(folder, ignore_errors=True)
        moment.rebuild(folder, lambda i: bool(kept >> i & 1), lambda i: tears[i % len(tears)])
        return folder / "codes.zarr"

    def harm(self, store: Path) -> str:
        """What is wrong with a store after a cut and another run of the command; "" if nothing."""
        tracks: Tracks = {}
        try:
            found = shown(store)
            tracks = shown_tracks(store)
        except StoreError as error:
            if self.before:
                return f"before recovery: {error}"
            found = {}
        hidden = self.before.keys() & self.after.keys() - found.keys()
        wrong = [
            key for key in found if found[key] not in (self.before.get(key), self.after.get(key))
        ]
        # A further track hides rows that it makes again, but shows no others in their place.
        wrong += [
            key
            for key in tracks
            if tracks[key] not in (self.tracks_before.get(key), self.tracks_after.get(key))
        ]
        if hidden or wrong:
            return f"before recovery: hidden {hidden}, wrong {wrong}"
        if code := self.command.run(store):
            return f"recovery ended with exit code {code}"
        names = self.command.differing(store)
        return f"recovered, but differs in {names}" if names else ""

    def loss(self, store: Path) -> str:
        """What a store that was reported as done lacks before recovery; "" if nothing."""
        try:
            found = shown(store)
        except StoreError as error:
            return str(error)
        if found != self.after or shown_tracks(store) != self.tracks_after:
            return f"shows {found.keys()}"
        return "" if plain_zarr_agrees(store) else "plain zarr reads other codes"

    def harms(self, folder: Path, at: str | None = None) -> Iterator[str]:
        """The harm of every extreme cut right before steps named `at` (None: all), and at the
        end."""
        for number, moment in reversed(list(enumerate(self.moments))):
            for kept, tear in extremes(len(moment.pending)):
                store = self.cut(folder, moment, kept, [tear])
                loss = self.loss(store) if moment is self.moments[-1] else ""
                wanted = at in (None, moment.about_to) or moment is self.moments[-1]
                if harm := loss or (wanted and self.harm(store)):
                    yield f"{number}, about to {moment.about_to}, {kept} {tear}: {harm}"


def plain_zarr_agrees(root: Path) -> bool:
    """Whether zarr, which reads missing chunks as fill, reads the codes that the index lists."""
    store, group = CodeStore.open(root), zarr.open(str(root), mode="r")
    return all(
        np.array_equal(
            group[f"g{grid}/{name}"][:][track.ok_rows(grid)],
            track.read(grid, track.ok_rows(grid)),
            equal_nan=track.name == "keypoints",
        )
        for name in ("image", *store.track_names)
        for track in [store.track(name)]
        for grid in track.grids
    )


def record(command: Command, top: Path, make_disk: type[RecordingDisk] = RecordingDisk) -> Recorded:
    """Run a command in this process, in a new folder `top`."""
    top.mkdir()
    out = command.prepare(top / "codes.zarr")
    disk = make_disk(top, out)
    with installed(disk):
        assert command.run_here(out) == 0
        disk.record("end")
    disk.close()
    before = (shown(command.base), shown_tracks(command.base)) if command.base else ({}, {})
    return Recorded(command, disk.moments, before[0], shown(out), before[1], shown_tracks(out))
