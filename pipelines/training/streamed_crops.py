"""StreamedCrops: crops of the images in tars that are streamed, and where their blocks begin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ops.files import json_hash, open_regular, parse_json
from pipelines.inputs import read_entry
from pipelines.training.image_dataset import Candidate, Crop, Crops
from pipelines.training.tar_streams import Position, TarFile, TarStreams

MOST_STREAMS = 64  # tars that a process may have open at once


def stream_count(batch_size: int, tars: int) -> int:
    """How many streams a batch is taken from: as many as divide it evenly, and as tars there are.

    A function of neither ranks nor workers, which share the streams among them.
    """
    most = min(batch_size, tars, MOST_STREAMS)
    return max(n for n in range(1, most + 1) if batch_size % n == 0)


def stream_settings(tars: Sequence[TarFile], buffer: int) -> dict[str, Any]:
    """What decides the order of streamed images, apart from the seed and the batch size."""
    names = [tar.key for tar in tars]
    return {"tars": len(names), "names": json_hash(names)[:16], "shuffle_buffer": buffer}


class StreamedCrops(Crops):
    """Crops of the images of TarStreams: position p has the next image of stream p % count.

    `log` notes at which tar and image blocks begin. A run that resumes finds its place by it, and
    would without it, but by the headers of all tars from the first one on.
    """

    def __init__(
        self,
        tars: Sequence[TarFile],
        log: PositionLog,
        *,
        buffer: int,
        held_out_share: float,
        **settings: Any,
    ) -> None:
        super().__init__(cache_bytes=0, **settings)
        self.streams = TarStreams(
            tars,
            count=stream_count(self.batch_size, len(tars)),
            buffer=buffer,
            seed=self.seed,
            held_out_share=held_out_share,
            starts=log.known,
        )
        self._log = log

    def candidates(self, position: int) -> Iterator[Candidate]:
        number, stream = divmod(position, self.streams.count)
        block, place = divmod(number, self.streams.buffer)
        entries = self.streams.block(stream, block).entries
        for entry in (*entries[place:], *entries[:place]):
            yield Candidate(entry.uri, entry.key, read_entry(entry))

    def __getitem__(self, position: int) -> Crop:
        crop = super().__getitem__(position)
        number, stream = divmod(position, self.streams.count)
        block = number // self.streams.buffer
        start = self.streams.starts.get((stream, block))
        notes = () if start is None else ((stream, block, start),)
        broken, self.streams.unreadable = self.streams.unreadable, []
        return crop._replace(unreadable=[*crop.unreadable, *broken], notes=notes)

    def taken(self, crop: Crop) -> None:
        for stream, block, start in crop.notes:
            self._log.add(stream, block, start)


class PositionLog:
    """Where blocks of streams begin, a line each, in a file of this process in the run folder."""

    def __init__(self, run: Path, rank: int, settings: dict[str, Any]) -> None:
        self._order = json_hash(settings)[:16]  # lines of another order mean nothing here
        self._path = run / f"stream_positions-{rank}.jsonl"
        self.known: dict[tuple[int, int], Position] = {}
        for path in sorted(run.glob("stream_positions-*.jsonl")):
            self.known |= self._read(path)
        self._noted = set(self.known)

    def add(self, stream: int, block: int, start: Position) -> None:
        """Note where a block begins, once."""
        if (stream, block) in self._noted:
            return
        self._noted.add((stream, block))
        line = json.dumps([self._order, stream, block, *start])
        with open(self._path, "ab") as file:
            # Begins with a line of its own, since a kill may have cut the last one short.
            file.write(f"\n{line}\n".encode())

    def _read(self, path: Path) -> dict[tuple[int, int], Position]:
        found = {}
        with open_regular(path, follow=False) as file:
            for line in file.read().splitlines():
                try:
                    order, stream, block, *start = parse_json(line)
                    position = Position(*start)
                except (ValueError, TypeError):
                    continue
                if order == self._order and all(type(n) is int and n >= 0 for n in position):
                    found[stream, block] = position
        return found
