"""The encode command on a GPU: the same bytes each time and by any number of workers."""

import numpy as np
import pytest
from PIL import Image

from tests.conftest import photograph
from tests.encode_run import everything

pytestmark = pytest.mark.gpu


def shards(root):
    return {path: data for path, data in everything(root).items() if path.startswith("g")}


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(10):
        suffix = "jpg" if number % 2 else "png"
        Image.fromarray(photograph(number)).save(tmp_path / "images" / f"{number}.{suffix}")
    (tmp_path / "images" / "broken.png").write_bytes(b"not an image")
    return tmp_path / "images"


@pytest.mark.parametrize(
    "flags",
    [
        {"precision": "float32"}, {"precision": "tf32"}, {"precision": "bfloat16"},
        {"compile": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_encoding_twice_gives_the_same_bytes(run, images, tmp_path, gpu, flags):
    """Also where each process compiles the encoder."""
    found = []
    for turn in (1, 2):
        run.out = tmp_path / f"{turn}.zarr"
        assert run(images, device=gpu.type, max_bad=1, **flags) == 0
        found.append(shards(run.out))
    assert found[0] == found[1]


def test_nvjpeg_repeats_and_gives_about_the_codes_of_pillow(run, images, tmp_path, real_gpu):
    found = []
    for name, decoder in (("a", "nvjpeg"), ("b", "nvjpeg"), ("c", "pillow")):
        run.out = tmp_path / f"{name}.zarr"
        assert run(images, device=real_gpu.type, max_bad=1, decoder=decoder) == 0
        rows = {row["key"]: row["codes"] for row in run.store()}
        found.append(np.stack([rows[f"{number}.jpg"] for number in range(1, 10, 2)]))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.mean(found[0] == found[2]) > 0.8


@pytest.mark.ray
def test_two_workers_on_one_gpu_give_the_same_bytes(run, images, tmp_path, gpu, ray_local):
    run.out = tmp_path / "one.zarr"
    assert run(images, device=gpu.type, max_bad=1) == 0
    alone = shards(run.out)
    run.out = tmp_path / "two.zarr"
    flags = {"workers": 2, "gpus_per_worker": 0.5 if gpu.type == "cuda" else 0}
    assert run(images, device=gpu.type, max_bad=1, **flags) == 0
    assert shards(run.out) == alone
