"""sample_cascade gives the codes that the command stores, for equal seed and settings."""

import numpy as np
import pytest
import torch
from PIL import Image

from ops.config import ConfigError
from ops.masked_images import MaskedImage, decode_masked, known_cells, resize_masked
from pipelines.generation import sample_cascade
from pipelines.store import CodeStore
from prior import ClassLabel, Inpaint, LowResolution, Prior, load_prior
from tests.cascade_run import make_prior
from tests.conftest import photograph
from tests.generate_run import generate
from tokenizer import load_tokenizer

SIZE, STAGES = (80, 56), [(32, 22), (64, 45), (80, 56)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("priors")
    num_codes = 256
    return {
        "classes": make_prior(root / "classes", "tiny", ClassLabel(num_classes=3)),
        "inpaint": make_prior(root / "inpaint", "tiny", Inpaint(codebook_size=num_codes)),
        "local": make_prior(root / "local", "tiny-local", LowResolution, {"temperature": 0.7}),
        "windows": make_prior(root / "windows", "tiny", LowResolution),
    }


@pytest.fixture(autouse=True)
def one_thread():
    """The command's default, which affects rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stored(folders, out, base, upscaler, *flags):
    """Codes (N, rows, columns) that the command makes."""
    more = ["--upscale", folders[upscaler], "--size", f"{SIZE[0]}x{SIZE[1]}", "--save", "codes"]
    assert generate(folders[base], out, *more, *flags) == 0
    store = CodeStore.open(out / "codes.zarr")
    rows = sorted((store[place] for place in range(len(store))), key=lambda row: row["key"])
    return torch.from_numpy(np.stack([row["codes"] for row in rows]).astype(np.int64))


@pytest.mark.parametrize("upscaler", ["local", "windows"])
def test_the_command_and_the_function_give_equal_codes(folders, tmp_path, upscaler):
    flags = ["--labels", "0,2", "--count", 3, "--batch-size", 2, "--seed", 5, "--stride", 1]
    flags += ["--guidance-scale", 1.5, "--upscale-temperature", 0.8, "--upscale-top-p", 0.7]
    found = sample_cascade(
        load_prior(folders["classes"]), load_prior(folders[upscaler]), SIZE,
        count=3, batch_size=2, seed=5, stride=1, labels=[0, 2, 0], guidance_scale=1.5,
        upscale_settings={"temperature": 0.8, "top_p": 0.7},
    )  # fmt: skip
    assert torch.equal(found, stored(folders, tmp_path, "classes", upscaler, *flags))


def holed_image(path):
    """A photograph with a transparent middle, as a file and as the function takes it."""
    layers = np.dstack([photograph(0, *SIZE[::-1]), np.full(SIZE[::-1], 255, np.uint8)])
    layers[16:40, 20:60, 3] = 0
    Image.fromarray(layers).save(path)
    return decode_masked(path.read_bytes())


def test_what_is_around_a_hole_is_kept_in_every_stage(folders, tmp_path, monkeypatch):
    masked = holed_image(tmp_path / "holed.png")
    sampled = []
    sample = Prior.sample

    def recording(self, *shape, **options):
        sampled.append(sample(self, *shape, **options))
        return sampled[-1]

    monkeypatch.setattr(Prior, "sample", recording)
    base, upscaler = load_prior(folders["inpaint"]), load_prior(folders["local"])
    found = sample_cascade(base, upscaler, SIZE, known=masked, count=2)
    tokenizer = load_tokenizer(folders["local"] / "tokenizer")
    for codes, (width, height) in zip(sampled, STAGES, strict=True):
        stage = resize_masked(masked, (height, width))
        pixels = torch.from_numpy(stage.image / 127.5 - 1).float().permute(2, 0, 1)[None]
        known = torch.from_numpy(known_cells(stage.known, 8))
        expected = tokenizer.encode(pixels).expand(2, -1, -1)
        assert torch.equal(codes[:, known], expected[:, known])
        assert 0 < known.sum() < known.numel() or width == 32
    monkeypatch.undo()
    flags = ["--condition", f"inpaint={tmp_path / 'holed.png'}", "--count", 2]
    assert torch.equal(found, stored(folders, tmp_path / "out", "inpaint", "local", *flags))


def test_each_sample_can_have_its_own_mask(folders):
    whole = MaskedImage(photograph(1, *SIZE[::-1]), np.zeros(SIZE[::-1], bool))
    half = whole._replace(known=np.indices(SIZE[::-1])[1] < 40)
    base, upscaler = load_prior(folders["classes"]), load_prior(folders["local"])
    found = sample_cascade(base, upscaler, SIZE, known=[whole, half], count=2)
    tokenizer = load_tokenizer(folders["local"] / "tokenizer")
    expected = tokenizer.encode(
        torch.from_numpy(whole.image / 127.5 - 1).float().permute(2, 0, 1)[None]
    )[0]
    assert torch.equal(found[1, :, :4], expected[:, :4])
    assert not torch.equal(found[0, :, :4], expected[:, :4])


def test_priors_that_make_no_cascade_are_refused(folders):
    classes, local = (load_prior(folders[name]) for name in ("classes", "local"))
    for priors, size, said in (
        ((classes, local), (32, 20), "not larger than the 32"),
        ((local, classes), SIZE, "condition low_res of a ratio"),
        ((Prior(classes.model, classes.conditions, classes.tokenizer_info), local), SIZE, "folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            sample_cascade(*priors, size)
