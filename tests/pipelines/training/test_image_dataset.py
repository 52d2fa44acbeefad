import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ops import transient_errors
from ops.config import UserError
from ops.ranks import Ranks
from ops.transient_errors import TransientError
from pipelines.inputs.bad_images import Ledger
from pipelines.training.image_dataset import ImageCrops, load_batches
from tests.conftest import photograph


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def flat(value, height=60, width=80):
    """An image of one colour, so that a crop shows which image it is from."""
    return encoded(np.full((height, width, 3), value, np.uint8))


def make_crops(images, **changes):
    read = [(f"{number}.png", lambda data=data: data) for number, data in enumerate(images)]
    settings = {"batch_size": 4, "crop_size": 16, "scale_range": (24, 48), "seed": 0, **changes}
    return ImageCrops(read, **settings)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "bad.jsonl")


@pytest.fixture
def batch(ledger):
    """batch(crops, step): the samples of one step."""

    def load(crops, step):
        (samples,) = load_batches(crops, ledger, step, step + 1)
        return samples

    return load


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no disk"), MemoryError()])
def test_a_crop_that_cannot_be_read_now_changes_no_run(batch, ledger, monkeypatch, error):
    monkeypatch.setattr(transient_errors, "WAITS", (0.0,))
    images = [flat(value) for value in (10, 60, 110, 160)]
    expected = batch(make_crops(images), 0)
    failures = [error]

    def read():
        if failures:
            raise failures.pop()
        return images[2]

    crops = make_crops(images)
    crops.read = [*crops.read[:2], ("2.png", read), crops.read[3]]
    assert torch.equal(batch(crops, 0), expected)  # the second try succeeded
    crops.cache = type(crops.cache)(0)
    failures += [error] * 2
    with pytest.raises(TransientError, match=r"2\.png cannot be read now, after 2 tries"):
        batch(crops, 0)
    assert torch.equal(batch(crops, 0), expected)
    assert not ledger.path.exists()


def test_a_batch_is_a_function_of_seed_and_step(batch):
    images = [encoded(photograph(seed)) for seed in range(5)]
    crops = make_crops(images)
    third = batch(crops, 3)
    assert third.shape == (4, 3, 16, 16)
    assert third.min() >= -1
    assert third.max() <= 1
    batch(crops, 0)
    assert torch.equal(batch(crops, 3), third)
    assert torch.equal(batch(make_crops(images, cache_bytes=0), 3), third)
    assert not torch.equal(batch(make_crops(images, seed=1), 3), third)
    assert not torch.equal(batch(crops, 4), third)


def test_every_image_comes_once_an_epoch(ledger):
    crops = make_crops([flat(10 * number) for number in range(12)])
    for epoch in range(3):
        samples = torch.cat(list(load_batches(crops, ledger, 3 * epoch, 3 * epoch + 3)))
        values = ((samples.mean((1, 2, 3)) + 1) * 127.5).round().int().tolist()
        assert sorted(values) == [10 * number for number in range(12)]


def test_crops_are_mirrored_half_the_time_and_differ_in_scale(batch):
    ramp = np.tile(np.arange(80, dtype=np.uint8)[None, :, None] * 3, (60, 1, 3))
    samples = batch(make_crops([encoded(ramp)], batch_size=64), 0)
    slopes = (samples[:, 0, :, -1] - samples[:, 0, :, 0]).mean(1)
    assert 16 < (slopes < 0).sum() < 48
    assert slopes.abs().max() / slopes.abs().min() > 1.5  # 48 / 24 at the most


def test_ranks_share_the_samples_of_a_batch(ledger):
    crops = make_crops([encoded(photograph(seed)) for seed in range(5)])
    (whole,) = load_batches(crops, ledger, 2, 3)
    for rank in range(2):
        (part,) = load_batches(crops, ledger, 2, 3, ranks=Ranks(rank, 2))
        assert torch.equal(part, whole[rank::2])


def test_an_unreadable_image_is_in_the_ledger_once_and_replaced(ledger):
    crops = make_crops([flat(50), b"no image", flat(100)])
    for samples in load_batches(crops, ledger, 0, 6):
        assert samples.shape == (4, 3, 16, 16)
    entries = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [entry["key"] for entry in entries] == ["1.png"]
    assert "image" in entries[0]["reason"]


def test_nothing_to_train_on_is_an_error(batch, ledger):
    with pytest.raises(UserError, match="no image to train on"):
        make_crops([])
    with pytest.raises(UserError, match="Not one image can be read"):
        batch(make_crops([b"x", b"y"]), 0)
    assert len(ledger.path.read_text().splitlines()) == 2


def test_images_smaller_than_the_crop_are_enlarged(batch):
    crops = make_crops([flat(90, height=5, width=7)], batch_size=2)
    assert batch(crops, 0).shape == (2, 3, 16, 16)


def crops_of_files(folder):
    """Crops of six files, unlike lambdas readable by loader workers; "4.png" is no image."""
    for number in range(6):
        data = b"no image" if number == 4 else encoded(photograph(number))
        (folder / f"{number}.png").write_bytes(data)
    read = [(f"{n}.png", partial(Path.read_bytes, folder / f"{n}.png")) for n in range(6)]
    return ImageCrops(read, batch_size=4, crop_size=16, scale_range=(24, 48), seed=0)


def test_any_number_of_workers_loads_the_same_batches_also_after_resuming(tmp_path):
    ledgers = {workers: Ledger(tmp_path / f"{workers}.jsonl") for workers in range(3)}
    random_state = torch.random.get_rng_state()
    whole, one, two = (
        list(load_batches(crops_of_files(tmp_path), ledger, 0, 7, num_workers=workers))
        for workers, ledger in ledgers.items()
    )
    resumed = list(load_batches(crops_of_files(tmp_path), ledgers[2], 3, 7, num_workers=2))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert len(whole) == 7
    for batches in (one, two, [*whole[:3], *resumed]):
        assert all(torch.equal(*pair) for pair in zip(batches, whole, strict=True))
    for ledger in ledgers.values():
        (entry,) = [json.loads(line) for line in ledger.path.read_text().splitlines()]
        assert entry["key"] == "4.png"


def test_the_error_of_workers_that_can_read_nothing_is_one_line(tmp_path):
    read = [(str(n), partial(Path.read_bytes, tmp_path / str(n))) for n in range(3)]
    crops = ImageCrops(read, batch_size=2, crop_size=16, scale_range=(24, 48), seed=0)
    ledger = Ledger(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match=r"^Not one image can be read; the reasons are in [^\n]*$"):
        list(load_batches(crops, ledger, 0, 2, num_workers=1))
    assert len(ledger.path.read_text().splitlines()) == 3


TRAINING_PROCESS = """
import sys
from pathlib import Path
from pipelines.inputs import Ledger
from pipelines.training.image_dataset import load_batches
from tests.pipelines.training.test_image_dataset import crops_of_files
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    batches = load_batches(crops_of_files(folder), Ledger(folder / "l"), 0, 10**6, num_workers=2)
    next(batches)
    print("loading", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_workers_end_when_the_training_process_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TRAINING_PROCESS)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == b"loading\n"
        process.kill()
    for _ in range(300):
        time.sleep(0.1)
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:  # none of its process group is left
            return
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("loader workers outlived the training process")
