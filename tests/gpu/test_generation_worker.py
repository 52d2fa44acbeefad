"""Generation on a GPU: images decoded on a stream of their own, while sampling."""

import pytest

from pipelines.generation import image_writer
from pipelines.generation.image_writer import ImageWriter
from prior import StartOfSequence
from tests.generate_run import everything, generate, make_run

pytestmark = pytest.mark.gpu


def test_images_decoded_while_sampling_are_those_decoded_on_the_same_stream(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", StartOfSequence())
    flags = ["--count", 12, "--batch-size", 2, "--device", "cuda", "--save", "images,codes"]
    assert generate(run, tmp_path / "at-once", *flags) == 0
    monkeypatch.setattr(image_writer, "MOST_THREADS", 1)
    monkeypatch.setattr(ImageWriter, "_decoded", ImageWriter._strips)
    assert generate(run, tmp_path / "alone", *flags) == 0
    assert everything(tmp_path / "alone") == everything(tmp_path / "at-once")
