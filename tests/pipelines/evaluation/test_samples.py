"""evaluate samples, with a small random network in place of Inception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from ops.config import UserError
from ops.files import make_folders
from ops.images import decode_image, resize_and_crop
from pipelines import evaluate
from pipelines.evaluation import evaluate_samples
from pipelines.evaluation.feature_files import FeatureFolder
from pipelines.evaluation.image_sets import list_images, list_samples
from pipelines.flags import EvaluateFlags
from pipelines.generation.index import SAMPLE_SCHEMA, commit_part
from pipelines.store import staging_path
from tests.conftest import photograph
from tests.pipelines.evaluation.random_features import PooledFeatures, RandomFeatures


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`samples` of 32x32 pixels and larger `real` images, which has an empty file as well."""
    root = tmp_path_factory.mktemp("images")
    for name, seeds, size in (("samples", range(12), (32, 32)), ("real", range(50, 65), (40, 56))):
        (root / name).mkdir()
        for seed in seeds:
            image = photograph(seed, *size)
            Image.fromarray(image).save(root / name / f"sample-{seed:05d}.png")
    (root / "real" / "empty.png").write_bytes(b"")
    return root


def flags_of(folders: Path, out: Path, **more: Any) -> EvaluateFlags:
    return EvaluateFlags(
        kind="samples", model=str(folders / "samples"), out=out, device="cpu", **more
    )


def arrays(folder: Path, side: int) -> torch.Tensor:
    """All images of a folder, uint8 (n, 3, side, side)."""
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    images = [resize_and_crop(decode_image(path.read_bytes()), side) for path in files]
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def test_metrics_are_the_libraries_own_on_the_same_images(folders, tmp_path):
    flags = flags_of(folders, tmp_path / "m.json", data=folders / "real", seed=4)
    values = evaluate_samples(flags, RandomFeatures()).values()
    generated, real = arrays(folders / "samples", 32), arrays(folders / "real", 32)
    library = FrechetInceptionDistance(feature=PooledFeatures(), input_img_size=(3, 32, 32))
    library.update(generated, real=False)
    library.update(real, real=True)
    assert values["fid"] == pytest.approx(float(library.compute()), rel=1e-4)
    network = PooledFeatures()
    kid = kid_features_to_metric(
        network(generated), network(real), kid_subset_size=12, rng_seed=4, verbose=False
    )
    assert values["kid"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4)
    assert 0 <= values["precision"] <= 1
    assert values["inception_score"] >= 1
    assert list(values["unreadable"]) == ["empty.png"]
    assert (values["images"], values["real_images"]) == (12, 15)


def test_features_are_reused_and_their_statistics_are_a_reference(folders, tmp_path):
    network = RandomFeatures()
    flags = flags_of(folders, tmp_path / "m.json", data=folders / "real")
    first = evaluate_samples(flags, network).values()
    assert network.num_images == 12 + 15
    assert evaluate_samples(flags, network).values() == first
    assert network.num_images == 12 + 15
    (real,) = (
        path.parent
        for path in (tmp_path / "m-features").glob("*/images.json")
        if json.loads(path.read_text())["count"] == 15
    )
    flags = flags_of(folders, tmp_path / "m.json", reference=real / "statistics.npz")
    again = evaluate_samples(flags, network)
    assert again.values()["fid"] == pytest.approx(first["fid"], rel=1e-12)
    assert [line.name for line in again.absent] == ["kid", "kid_std", "precision", "recall"]
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="statistics of 3 features, but the network gives 6"):
        evaluate_samples(
            flags_of(folders, tmp_path / "m.json", reference=tmp_path / "other.npz"), network
        )


def test_a_run_that_was_cut_short_goes_on_from_its_blocks(folders, tmp_path):
    images = list_images(folders / "real", None)
    cpu = torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        FeatureFolder(tmp_path / "f", RandomFeatures(fail_after=7), cpu, block=4).features(images)
    network = RandomFeatures()
    found = FeatureFolder(tmp_path / "f", network, cpu, block=4).features(images)
    assert network.num_images == 15 - 7  # two blocks of four were done, with the empty file
    whole = FeatureFolder(tmp_path / "g", RandomFeatures(), cpu).features(images)
    torch.testing.assert_close(found.pooled, whole.pooled, rtol=1e-6, atol=1e-7)
    assert found.unreadable == whole.unreadable
    assert [path.name for path in (tmp_path / "f").iterdir()] == [found.folder.name]


def test_changed_images_are_computed_again(tmp_path):
    (tmp_path / "images").mkdir()
    network, cpu = RandomFeatures(), torch.device("cpu")
    folder = FeatureFolder(tmp_path / "f", network, cpu)
    for seed in (0, 1):
        Image.fromarray(photograph(seed, 32, 32)).save(tmp_path / "images" / "a.png")
        folder.features(list_images(tmp_path / "images", None))
    assert network.num_images == 2


def test_without_weights_the_metrics_are_absent_with_the_reason(
    folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    out, npz = tmp_path / "m.json", tmp_path / "s.npz"
    words = ["samples", folders / "samples", "--data", folders / "real", "--out", out]
    assert evaluate.main([*map(str, words), "--save-npz", str(npz)]) == 1
    found = json.loads(out.read_text())
    assert "fid" not in found["metrics"]
    reasons = {line["name"]: line["reason"] for line in found["absent"]}
    assert set(reasons) >= {"fid", "kid", "inception_score", "precision", "recall"}
    assert "weights-inception-2015-12-05-6726825d.pth" in reasons["fid"]
    assert "torch-fidelity publishes" in reasons["fid"]
    assert "without fid, kid" in capsys.readouterr().out
    with np.load(npz) as file:
        assert file.files == ["arr_0"]
        expected = arrays(folders / "samples", 32).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(file["arr_0"], expected)


def test_samples_of_several_sizes_are_no_array(folders, tmp_path, capsys):
    (tmp_path / "mixed").mkdir()
    for seed, side in ((0, 32), (1, 40)):
        Image.fromarray(photograph(seed, side, side)).save(tmp_path / "mixed" / f"{seed}.png")
    words = ["samples", tmp_path / "mixed", "--out", tmp_path / "m.json", "--save-npz"]
    assert evaluate.main([*map(str, words), str(tmp_path / "s.npz")]) == 2
    assert "1.png has 40x40 pixels, but the first sample 32x32" in capsys.readouterr().err
    assert not list(tmp_path.glob("s.npz*"))


def test_what_generate_wrote_is_read_by_its_index(tmp_path):
    lines = [{"sample": n, "seed": 0, "status": "ok"} for n in range(3)]
    make_folders(staging_path(tmp_path))
    commit_part(tmp_path, 0, pa.Table.from_pylist(lines, SAMPLE_SCHEMA))
    for name in ("sample-00000", "sample-00001", "condition-half"):
        Image.fromarray(photograph(0, 32, 32)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"images of 2 of 3 samples.*--save images"):
        list_samples(tmp_path, None)
    Image.fromarray(photograph(2, 32, 32)).save(tmp_path / "sample-00002.png")
    found = list_samples(tmp_path, None)
    assert found.entries["key"].to_pylist() == [f"sample-{n:05d}.png" for n in range(3)]
    assert list_samples(tmp_path, 1).entries["key"].to_pylist() == ["sample-00000.png"]
