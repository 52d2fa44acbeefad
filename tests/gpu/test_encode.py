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
        {"compile": "yes"}, {"decoder": "nvjpeg"},
    ],
    ids=str,
)  # fmt: skip
def test_encoding_twice_gives_the_same_bytes(encode_run, images, tmp_path, gpu, flags):
    """Also where each process compiles the encoder, or JPEG files are decoded on the GPU."""
    if gpu.type == "cpu" and "decoder" in flags:
        pytest.skip("a CPU has no nvJPEG")
    found = []
    for turn in (1, 2):
        encode_run.out = tmp_path / f"{turn}.zarr"
        assert encode_run(images, device=gpu.type, max_bad=1, **flags) == 0
        found.append(shards(encode_run.out))
    assert found[0] == found[1]


def test_most_codes_are_the_same_whichever_decoder_reads_a_jpeg(encode_run, images, tmp_path, gpu):
    if gpu.type == "cpu":
        pytest.skip("a CPU has no nvJPEG")
    found = []
    for decoder in ("pillow", "nvjpeg"):
        encode_run.out = tmp_path / f"{decoder}.zarr"
        assert encode_run(images, device=gpu.type, max_bad=1, decoder=decoder) == 0
        rows = {row["key"]: row["codes"] for row in encode_run.store()}
        found.append([rows[f"{number}.jpg"] for number in range(1, 10, 2)])
    assert np.mean(np.stack(found[0]) == np.stack(found[1])) > 0.8


@pytest.mark.ray
def test_two_workers_on_one_gpu_give_the_same_bytes(encode_run, images, tmp_path, gpu, ray_local):
    encode_run.out = tmp_path / "one.zarr"
    assert encode_run(images, device=gpu.type, max_bad=1) == 0
    alone = shards(encode_run.out)
    encode_run.out = tmp_path / "two.zarr"
    flags = {"workers": 2, "gpus_per_worker": 0.5 if gpu.type == "cuda" else 0}
    assert encode_run(images, device=gpu.type, max_bad=1, **flags) == 0
    assert shards(encode_run.out) == alone
