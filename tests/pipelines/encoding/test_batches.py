"""BatchEncoder: a row's codes do not depend on its neighbours, and no image stops the others."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from ops import transient_errors
from ops.images import Transform
from ops.transient_errors import TransientError
from pipelines.encoding.batches import BatchEncoder
from pipelines.encoding.sources import Photographs
from pipelines.inputs.listing import list_input
from pipelines.inputs.reading import content_hash
from pipelines.planning.diff import DUPLICATE
from pipelines.store.task_buffer import IndexLine
from tokenizer import load_tokenizer

SIZE = (32, 32)


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Path) -> Iterator[BatchEncoder]:
    encoder = BatchEncoder(
        load_tokenizer(tiny_tokenizer),
        Photographs(Transform(image_size=32)),
        batch_size=5,
        threads=1,
        concurrent_batches=1,
        decoders=2,
    )
    yield encoder
    encoder.stop()


@pytest.fixture(scope="module")
def rows(photographs: Path) -> list[dict[str, Any]]:
    """Five planned images."""
    names = ("key", "uri", "offset", "size", "etag")
    entries = list_input(photographs).entries[:5]
    return [{"view": 0} | {name: getattr(entry, name) for name in names} for entry in entries]


def codes_of(encoder: BatchEncoder, rows: list[dict[str, Any]], places: set[int]) -> np.ndarray:
    reading = encoder.read({place: rows[place] for place in sorted(places)}, SIZE)
    return encoder.encode(reading).result().numpy()


def lines_of(encoder: BatchEncoder, rows: list[dict[str, Any]]) -> list[IndexLine]:
    lines = encoder.read(dict(enumerate(rows)), SIZE).lines
    return [lines[place].result() for place in range(len(rows))]


@hypothesis.given(present=st.sets(st.integers(0, 4), min_size=1))
def test_codes_of_a_row_do_not_depend_on_its_neighbours(
    encoder: BatchEncoder, rows: list[dict[str, Any]], present: set[int]
) -> None:
    full = codes_of(encoder, rows, set(range(5)))
    assert len(np.unique(full.reshape(5, -1), axis=0)) == 5
    places = sorted(present)
    np.testing.assert_array_equal(codes_of(encoder, rows, present)[places], full[places])


def test_lines_have_size_and_hash_of_the_file(
    encoder: BatchEncoder, rows: list[dict[str, Any]]
) -> None:
    hashes = [content_hash(Path(row["uri"]).read_bytes()) for row in rows]
    assert lines_of(encoder, rows) == [IndexLine(64, 48, "ok", None, digest) for digest in hashes]


def test_one_of_two_images_with_the_same_key_is_not_read(
    encoder: BatchEncoder, rows: list[dict[str, Any]]
) -> None:
    first, second = lines_of(encoder, [rows[0], {**rows[0], "etag": DUPLICATE}])
    assert first.status == "ok"
    assert second == IndexLine(None, None, "duplicate key", "another image has the same key", None)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (OSError("strange disk"), "unreadable", "OSError: strange disk"),
        (ZeroDivisionError("codec"), "broken", "ZeroDivisionError: codec"),
    ],
)
def test_an_exception_of_a_codec_becomes_the_status_of_its_image(
    encoder: BatchEncoder,
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: str,
    text: str,
) -> None:
    read = Transform.read

    def failing(self: Transform, data: bytes, size: tuple[int, int], view: int, key: str) -> Any:
        if key == rows[3]["key"]:
            raise error
        return read(self, data, size, view, key)

    monkeypatch.setattr(Transform, "read", failing)
    lines = lines_of(encoder, rows)
    digest = content_hash(Path(rows[3]["uri"]).read_bytes())
    assert lines[3] == IndexLine(None, None, status, text, digest)
    assert [line.status for line in lines].count("ok") == 4


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "no disk"), OSError(errno.EMFILE, "files"), MemoryError("4 GiB")]
)
def test_what_is_transient_is_tried_again_and_then_fails_the_batch(
    encoder: BatchEncoder,
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(transient_errors, "WAITS", (0.0, 0.0))
    opened, tries, failing = os.open, [0], [2]

    def open_now(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path) == rows[3]["uri"]:
            tries[0] += 1
            if tries[0] <= failing[0]:
                raise error
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_now)
    assert [line.status for line in lines_of(encoder, rows)] == ["ok"] * 5
    assert tries == [3]
    tries[0], failing[0] = 0, 9
    with pytest.raises(TransientError, match="cannot be read now, after 3 tries"):
        lines_of(encoder, rows)


def test_a_missing_file_has_no_hash(encoder: BatchEncoder, rows: list[dict[str, Any]]) -> None:
    (line,) = lines_of(encoder, [{**rows[0], "uri": "/nowhere/at all.jpg"}])
    assert (line.status, line.content) == ("missing", None)


def test_a_tokenizer_that_does_not_work_fails_before_any_image(tiny_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)

    def failing(pixels: torch.Tensor, **options: bool) -> torch.Tensor:
        raise RuntimeError("no kernel for this device")

    tokenizer.encode = failing  # type: ignore[method-assign]
    source = Photographs(Transform(image_size=32))
    with pytest.raises(RuntimeError, match="no kernel for this device"):
        BatchEncoder(tokenizer, source, batch_size=2, threads=1, concurrent_batches=1, decoders=1)
