"""The encode command on a GPU: the same bytes each time and by any number of workers."""

import pytest

from tests.conftest import photograph
from tests.encode_run import everything

pytestmark = pytest.mark.gpu


def shards(root):
    return {path: data for path, data in everything(root).items() if path.startswith("g")}


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.fromarray(photograph(number)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"not an image")
    return tmp_path / "images"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_encoding_twice_gives_the_same_bytes(encode_run, images, tmp_path, gpu, precision):
    found = []
    for turn in (1, 2):
        encode_run.out = tmp_path / f"{turn}.zarr"
        assert encode_run(images, device=gpu.type, precision=precision, max_bad=1) == 0
        found.append(shards(encode_run.out))
    assert found[0] == found[1]


@pytest.mark.ray
def test_two_workers_on_one_gpu_give_the_same_bytes(encode_run, images, tmp_path, gpu, ray_local):
    encode_run.out = tmp_path / "one.zarr"
    assert encode_run(images, device=gpu.type, max_bad=1) == 0
    alone = shards(encode_run.out)
    encode_run.out = tmp_path / "two.zarr"
    flags = {"workers": 2, "gpus_per_worker": 0.5 if gpu.type == "cuda" else 0}
    assert encode_run(images, device=gpu.type, max_bad=1, **flags) == 0
    assert shards(encode_run.out) == alone
