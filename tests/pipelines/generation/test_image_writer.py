"""ImageWriter: images are written while the next batch is sampled, and nothing is lost by it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from ops.disk_errors import DiskError
from ops.files import file_hash
from ops.png import write_png_strips
from pipelines.generation import image_writer
from pipelines.generation.image_writer import ImageWriter
from pipelines.generation.index import read_lines
from pipelines.generation.sample_buffer import read_buffer
from pipelines.generation.worker import MOST_WAITING, GenerationWorker
from pipelines.jobs.queue import Done, Piece
from tests.generate_run import contents, everything, generate, request_of

TASK = Piece(task=0, first=0, end=6)
SECONDS = 60


@pytest.fixture
def worker(prior_run: Path, tmp_path: Path) -> GenerationWorker:
    return GenerationWorker(request_of(prior_run, tmp_path / "out", batch_size=1))


def count_sampled(worker: GenerationWorker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives the first sample of each batch once it is sampled."""
    sampled: list[int] = []
    sample = worker.prior.sample

    def counting(*arguments: Any, samples: list[int], **options: Any) -> Any:
        codes = sample(*arguments, samples=samples, **options)
        sampled.append(samples[0])
        return codes

    monkeypatch.setattr(worker.prior, "sample", counting)
    return sampled


def test_the_next_batches_are_sampled_while_an_image_is_written(
    worker: GenerationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough, held = threading.Event(), []
    sampled = count_sampled(worker, monkeypatch)
    keep = worker._keep_written

    def writing(*arguments: Any, **options: Any) -> None:
        assert enough.wait(SECONDS)
        write_png_strips(*arguments, **options)

    def keeping(buffer: Any, most_waiting: int) -> None:
        held.append(len(worker._waiting))
        if len(sampled) > MOST_WAITING:  # until then no image was written
            enough.set()
        keep(buffer, most_waiting)

    monkeypatch.setattr(image_writer, "write_png_strips", writing)
    monkeypatch.setattr(worker, "_keep_written", keeping)
    assert worker.run(TASK) == Done(6, 0, 36)
    assert sampled == [0, 1, 2, 3, 4, 5]
    assert max(held) == MOST_WAITING + 1
    assert len(contents(worker.request.out)) == 6


def test_a_full_disk_is_one_error_after_which_nothing_is_written(
    worker: GenerationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = count_sampled(worker, monkeypatch)

    def writing(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "sample-00001.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_png_strips(path, *arguments, **options)

    monkeypatch.setattr(image_writer, "write_png_strips", writing)
    with pytest.raises(DiskError):
        worker.run(TASK)
    assert len(sampled) <= 2 + MOST_WAITING
    assert read_buffer(worker.request, 0).sampled() == [0]
    monkeypatch.setattr(image_writer, "write_png_strips", write_png_strips)
    assert worker.run(TASK) == Done(5, 0, 30)


def test_images_too_large_to_wait_are_the_same_files(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate(prior_run, tmp_path / "in_threads", "--count", 3) == 0
    monkeypatch.setattr(image_writer, "MOST_BYTES", 0)
    assert generate(prior_run, tmp_path / "inline", "--count", 3) == 0
    assert everything(tmp_path / "inline") == everything(tmp_path / "in_threads")


def test_strips_are_decoded_by_one_thread_at_a_time(worker: GenerationWorker) -> None:
    writer = ImageWriter(worker.tokenizer, 24, 16)
    codes = worker.prior.sample(2, 3)[0].numpy()
    expected = b"".join(strip.tobytes() for strip in writer._strips(codes))
    found: list[bytes] = []

    def decode() -> None:
        found.append(b"".join(strip.tobytes() for strip in writer._decoded(codes)))

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_an_image_drawn_again_has_the_checksum_of_its_file(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may compress it to other bytes than those whose checksum was kept."""
    request = request_of(prior_run, tmp_path / "out", save=("images",))
    worker = GenerationWorker(request)
    worker.run(Piece(task=0, first=0, end=6, commits=False))
    whole = contents(request.out)
    (request.out / "sample-00003.png").unlink()
    monkeypatch.setattr("ops.png.LEVEL", 1)
    worker.run(TASK)
    line = read_lines(request.out, 0)[3]
    assert line["checksum"] == file_hash(request.out / "sample-00003.png")
    assert contents(request.out)["sample-00003.png"] != whole["sample-00003.png"]
