"""TarStreams: the images of many tars in a shuffled endless order, without listing them.

Every epoch deals the tars, in an order of its own, to a fixed number of streams. A stream reads the
headers of its tars one after the other and shuffles its images within blocks of neighbours: the
buffer. So the image at any position is a function of the tars, the seed and the sizes of the deal,
whoever asks for it; and it is found again from the tar, and the number of the image in it, at which
its block begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ops.config import UserError
from ops.files import NotRegularError
from ops.permutation import KeyedPermutation
from ops.text import printable
from ops.transient_errors import TransientError, is_transient
from ops.web_paths import SourcePath
from pipelines.inputs import ArchiveError, Entry, held_out, input_sources, tar_entries, tars_below

DEAL, BLOCK = 0, 1  # the last entry of a permutation's key, so that its uses are independent


class TarFile(NamedTuple):
    """One of the tars that are streamed."""

    key: str  # what the keys of its images begin with, as in a listing of several tars
    path: str


class Position(NamedTuple):
    """Where a stream has got to."""

    epoch: int
    turn: int  # of the tars that this epoch deals to the stream
    image: int  # in that tar


class Block(NamedTuple):
    """Neighbours in a stream, as they are shuffled."""

    entries: list[Entry]
    start: Position


def expand_tars(data: SourcePath) -> list[TarFile]:
    """The tars that `data` names, sorted: a pattern, as data-{000..099}.tar, a tar, or a folder.

    Raises UserError where there is none, or one does not exist.
    """
    found = []
    for source in input_sources(data):
        tars = tars_below(source.path)
        if tars is not None:
            found += [TarFile(os.path.join(source.key, name), uri) for name, uri in tars]
        elif source.path.suffix.lower() != ".tar":
            raise UserError(f"--stream reads tar files; {printable(source.path)} is none by name.")
        else:
            found.append(TarFile(source.key or source.path.name, str(source.path)))
    if not found:
        raise UserError(f"--data {printable(data)} holds no tar file. Name a folder that does.")
    return sorted(found)


class TarStreams:
    """Streams 0 to `count` - 1 of the images of `tars`.

    The share `held_out_share` of them, by key, is left out. `starts` are positions at which blocks
    (stream, number) are known to begin. A tar that cannot be read to its end is left there, with
    the reason in `unreadable`.
    """

    def __init__(
        self,
        tars: Sequence[TarFile],
        *,
        count: int,
        buffer: int,
        seed: int,
        held_out_share: float,
        starts: Mapping[tuple[int, int], Position],
    ) -> None:
        self.tars, self.count, self.buffer, self.seed = tars, count, buffer, seed
        self.held_out_share = held_out_share
        self.starts = dict(starts)
        self.unreadable: list[tuple[str, str]] = []
        self._cursors: dict[int, _Cursor] = {}

    def block(self, stream: int, number: int) -> Block:
        """A block; blocks in turn are read once. It is empty where no tar has an image.

        Raises TransientError where a tar cannot be read now.
        """
        cursor = self._cursors.get(stream)
        if cursor is None or not cursor.number <= number:
            cursor = self._cursors[stream] = self._cursor(stream, number)
        try:
            while cursor.number < number or cursor.block is None:
                self._advance(stream, cursor)
        except TransientError:  # an exception ends its generator
            del self._cursors[stream]
            raise
        return cursor.block

    def measured(self, most: int) -> list[Entry]:
        """The first `most` images that are held out, reading no more tars than it takes."""
        everything = (entry for tar in self.tars for entry in self._entries(tar))
        share = self.held_out_share
        return list(islice((each for each in everything if held_out(each.key, share)), most))

    def _cursor(self, stream: int, number: int) -> _Cursor:
        """A cursor before the last block, up to `number`, of which the start is known."""
        known = [block for of, block in self.starts if of == stream and block <= number]
        first = max(known, default=0)
        start = self.starts.get((stream, first), Position(0, 0, 0))
        return _Cursor(first - 1, None, self._walk(stream, start))

    def _advance(self, stream: int, cursor: _Cursor) -> None:
        found = list(islice(cursor.images, self.buffer))
        start = found[0][0] if found else Position(0, 0, 0)
        cursor.number += 1
        if found:
            self.starts[stream, cursor.number] = start
        order = np.arange(len(found))
        if len(found) > 1:
            key = (self.seed, cursor.number, stream, BLOCK)
            order = KeyedPermutation(len(found), *key)(order)
        cursor.block = Block([found[place][1] for place in order.tolist()], start)

    def _walk(self, stream: int, start: Position) -> Iterator[tuple[Position, Entry]]:
        """The images of a stream from a position on; ends where all tars turn out to have none."""
        epoch, turn, first = start
        without_image = 0
        while True:
            everything = np.arange(len(self.tars))
            dealt = KeyedPermutation(len(self.tars), self.seed, epoch, DEAL)(everything)
            own = dealt[stream :: self.count]
            while turn < len(own):
                without_image += 1
                for number, entry in enumerate(self._entries(self.tars[own[turn]])):
                    if number >= first and not held_out(entry.key, self.held_out_share):
                        without_image = 0
                        yield Position(epoch, turn, number), entry
                turn, first = turn + 1, 0
                # Each stream meets different tars in each epoch, so a few epochs show all.
                if without_image > 8 * len(self.tars):
                    return
            epoch, turn = epoch + 1, 0

    def _entries(self, tar: TarFile) -> Iterator[Entry]:
        try:
            yield from tar_entries(tar.path, tar.key)
        except (ArchiveError, NotRegularError, OSError) as error:
            if is_transient(error):
                raise TransientError(
                    f"{printable(tar.path)} cannot be read now ({error}). Run the same command "
                    "again"
                ) from error
            self.unreadable.append((tar.key, f"cannot be read to its end: {error}"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursors": {}}  # another process reads the tars itself


class _Cursor:
    """A stream's last block, and what comes after it."""

    def __init__(
        self, number: int, block: Block | None, images: Iterator[tuple[Position, Entry]]
    ) -> None:
        self.number, self.block, self.images = number, block, images
