import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ops.config import UserError
from pipelines.inputs.bad_images import Ledger
from pipelines.training.image_dataset import ImageCache, ImageCrops
from tests.conftest import photograph


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def flat(value, height=60, width=80):
    """A picture of one colour, so that a crop tells which picture it is from."""
    return encoded(np.full((height, width, 3), value, np.uint8))


def make_crops(images, tmp_path, **changes):
    read = [(f"{number}.png", lambda data=data: data) for number, data in enumerate(images)]
    settings = {"batch_size": 4, "crop_size": 16, "scale_range": (24, 48), "seed": 0, **changes}
    return ImageCrops(read, ledger=Ledger(tmp_path / "bad.jsonl"), **settings)


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    images = [encoded(photograph(seed)) for seed in range(5)]
    crops = make_crops(images, tmp_path)
    batch = crops.batch(3)
    assert batch.shape == (4, 3, 16, 16)
    assert batch.min() >= -1
    assert batch.max() <= 1
    crops.batch(0)
    assert torch.equal(crops.batch(3), batch)
    assert torch.equal(make_crops(images, tmp_path, cache_bytes=0).batch(3), batch)
    assert not torch.equal(make_crops(images, tmp_path, seed=1).batch(3), batch)
    assert not torch.equal(crops.batch(4), batch)


def test_every_image_comes_once_an_epoch(tmp_path):
    crops = make_crops([flat(10 * number) for number in range(12)], tmp_path)
    for epoch in range(3):
        batches = torch.cat([crops.batch(epoch * 3 + step) for step in range(3)])
        values = ((batches.mean((1, 2, 3)) + 1) * 127.5).round().int().tolist()
        assert sorted(values) == [10 * number for number in range(12)]


def test_crops_are_mirrored_half_the_time_and_differ_in_scale(tmp_path):
    ramp = np.tile(np.arange(80, dtype=np.uint8)[None, :, None] * 3, (60, 1, 3))
    crops = make_crops([encoded(ramp)], tmp_path, batch_size=64)
    slopes = (crops.batch(0)[:, 0, :, -1] - crops.batch(0)[:, 0, :, 0]).mean(1)
    assert 16 < (slopes < 0).sum() < 48
    assert slopes.abs().max() / slopes.abs().min() > 1.5  # 48 / 24 at the most


def test_a_bad_image_is_in_the_ledger_once_and_stops_nothing(tmp_path):
    crops = make_crops([flat(50), b"no image", flat(100)], tmp_path)
    for step in range(6):
        assert crops.batch(step).shape == (4, 3, 16, 16)
    entries = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in entries] == ["1.png"]
    assert "image" in entries[0]["reason"]


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no image to train on"):
        make_crops([], tmp_path)
    with pytest.raises(UserError, match="Not one image can be read"):
        make_crops([b"x", b"y"], tmp_path).batch(0)


def test_images_smaller_than_the_crop_are_enlarged(tmp_path):
    crops = make_crops([flat(90, height=5, width=7)], tmp_path, batch_size=2)
    assert crops.batch(0).shape == (2, 3, 16, 16)


def test_the_cache_forgets_the_longest_unused_first():
    cache = ImageCache(limit=3 * 12)
    images = [np.full((2, 2, 3), number, np.uint8) for number in range(4)]
    for number in range(3):
        cache.put(number, images[number])
    cache.get(0)
    cache.put(3, images[3])
    assert cache.get(1) is None
    assert cache.get(0) is images[0]
    assert cache.get(3) is images[3]
