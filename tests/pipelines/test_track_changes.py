"""Tracks over time: later images and partners, missing folders, corruption, Ray workers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ops.files import exclusive_lock
from pipelines import report, verify
from pipelines.planning.plan import read_plan
from pipelines.store import StoreError
from pipelines.store.layout import index_path, lock_path, shard_path, track_path
from pipelines.tracks.plan import check_as_planned
from tests.conftest import photograph
from tests.encode_run import EncodeRun, everything
from tests.track_run import make_tokenizer, write_labels


class Maps:
    """A store of three images, a task each, with their label maps."""

    def __init__(self, folder: Path, run: EncodeRun) -> None:
        self.run = run
        self.images, self.labels = folder / "images", folder / "labels"
        self.images.mkdir()
        for seed in range(3):
            Image.fromarray(photograph(seed)).save(self.images / f"{seed}.png")
        write_labels(self.images, self.labels)
        self.tokenizer = make_tokenizer(folder / "label-tokenizer", "segmentation")
        self.flags: dict[str, object] = {
            "track": f"segmentation={self.labels}",
            "track_tokenizer": f"segmentation={self.tokenizer}",
            "rows_per_task": 1,
        }

    def __call__(self, **changed: object) -> int:
        return self.run(self.images, **{**self.flags, **changed})

    def again(self, **changed: object) -> int:
        """Run the command without the flags of tracks."""
        return self.run(self.images, rows_per_task=1, **changed)

    def statuses(self) -> list[str]:
        statuses: list[str] = self.run.store().track("segmentation").index["status"].to_pylist()
        return statuses

    def parts(self) -> dict[str, int]:
        """When the index part of each task of the track was written."""
        folder = track_path(self.run.out, "segmentation") / "_index"
        return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


@pytest.fixture
def maps(tmp_path: Path, run: EncodeRun) -> Maps:
    return Maps(tmp_path, run)


def test_only_partners_that_are_new_or_changed_are_encoded(maps: Maps, tmp_path: Path) -> None:
    (maps.labels / "1.png").rename(tmp_path / "1.png")
    assert maps() == 0
    assert maps.statuses() == ["ok", "no partner", "ok"]
    before, parts = everything(maps.run.out / "g4x4/image"), maps.parts()
    (tmp_path / "1.png").rename(maps.labels / "1.png")
    shutil.copy(maps.labels / "0.png", maps.labels / "2.png")
    os.utime(maps.labels / "2.png", ns=(1, 1))
    assert maps.again() == 0
    assert maps.statuses() == ["ok"] * 3
    assert "3 encoded, 0 failed, 0 skipped, 2 rows of further tracks" in maps.run.printed
    assert {name for name, when in maps.parts().items() if when != parts[name]} == {
        "1.parquet",
        "2.parquet",
    }
    track = maps.run.store().track("segmentation")
    first, _, third = track.read("4x4", np.arange(3))
    np.testing.assert_array_equal(first, third)
    assert everything(maps.run.out / "g4x4/image") == before
    assert verify.main([str(maps.run.out)]) == 0


def test_report_of_a_store_names_its_tracks(maps: Maps, tmp_path: Path) -> None:
    (maps.labels / "1.png").unlink()
    assert maps() == 0
    page = tmp_path / "report.html"
    assert report.main([str(maps.run.out), "--out", str(page)]) == 0
    assert "track segmentation" in page.read_text()
    assert "1 images lack it: 1 no partner" in page.read_text()


def test_pruned_images_are_in_no_track(maps: Maps) -> None:
    assert maps() == 0
    (maps.images / "1.png").unlink()
    assert maps.again(prune=True) == 0
    store = maps.run.store()
    assert store.track("segmentation").ok_rows("4x4").tolist() == store.ok_rows("4x4").tolist()
    assert len(store.track("segmentation")) == 2


def test_row_stays_where_its_partner_is_removed(maps: Maps) -> None:
    assert maps() == 0
    before = everything(maps.run.out)
    (maps.labels / "1.png").unlink()
    assert maps.again() == 0
    assert "nothing to do" in maps.run.printed
    assert everything(maps.run.out) == before


def test_later_images_get_their_rows_in_every_track(maps: Maps) -> None:
    assert maps(track=(maps.flags["track"], "low_res=2")) == 0
    Image.fromarray(photograph(7)).save(maps.images / "0 later.png")
    Image.fromarray(photograph(8)).save(maps.images / "1.png")  # in the place of another
    write_labels(maps.images, maps.labels)
    assert maps.again() == 0
    store = maps.run.store()
    for name in ("segmentation", "low_res"):
        track = store.track(name)
        for column in ("key", "grid", "row", "view", "replaces", "status"):
            assert track.index[column].equals(store.index[column])
        np.testing.assert_array_equal(track.ok_rows("4x4"), store.ok_rows("4x4"))
        assert len(track) == 4
    assert verify.main([str(maps.run.out)]) == 0


def test_failed_image_has_no_row_in_a_track(maps: Maps) -> None:
    (maps.images / "1.png").write_bytes(b"broken")
    assert maps(max_bad=1) == 0
    assert maps.statuses() == ["ok", "no image", "ok"]
    assert "segmentation: 2 rows\n" in maps.run.printed  # the image failed, not the partner


def test_track_whose_folder_is_missing_is_not_extended(maps: Maps) -> None:
    assert maps() == 0
    maps.labels.rename(maps.labels.with_name("moved"))
    Image.fromarray(photograph(7)).save(maps.images / "later.png")
    assert maps.again() == 1
    assert f"track segmentation is not extended: {maps.labels} no longer exists" in maps.run.errors
    assert verify.main([str(maps.run.out)]) == 0
    assert len(maps.run.store()) == 4
    assert len(maps.run.store().track("segmentation")) == 3
    before = maps.parts()
    assert maps.run(maps.images, rows_per_task=1, track=f"segmentation={maps.labels}/../moved") == 0
    assert maps.statuses() == ["ok", "ok", "ok", "no partner"]
    assert {name: maps.parts()[name] for name in before} == before  # the others are as they were


def test_track_without_any_partner_is_an_error_that_shows_names(maps: Maps) -> None:
    for path in maps.labels.iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    assert maps() == 2
    assert "none of the 3 rows of images has a partner there" in maps.run.errors
    assert "names such as '0.png', '1.png', '2.png'" in maps.run.errors
    assert "there are 'other-0.png', 'other-1.png'" in maps.run.errors
    assert not (maps.run.out / "_tracks").exists()


def test_input_is_read_once_the_store_is_locked(maps: Maps) -> None:
    """Or two runs with other tracks or images could each plan what the other does not know of."""
    with exclusive_lock(lock_path(maps.run.out)):
        assert maps(track=f"segmentation={maps.labels}/missing") == 2
        assert maps.run(maps.images / "missing") == 2
    assert "is held by another process" in maps.run.errors
    assert maps(track=f"segmentation={maps.labels}/missing") == 2
    assert "missing" in maps.run.errors


def test_another_tokenizer_or_ratio_is_refused(maps: Maps, tmp_path: Path) -> None:
    assert maps(track=(maps.flags["track"], "low_res=2")) == 0
    other = make_tokenizer(tmp_path / "other", "depth")
    assert maps(track_tokenizer=f"segmentation={other}") == 2
    assert "track segmentation was begun with fingerprint" in maps.run.errors
    assert maps(track="low_res=4", track_tokenizer=()) == 2
    assert "was begun with ratio 2, asked for 4" in maps.run.errors


def test_failed_partners_are_tried_again_with_retry_failed(maps: Maps) -> None:
    path = maps.labels / "1.png"
    right, times = path.read_bytes(), path.stat()
    path.write_bytes(b"\0" * len(right))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert maps() == 0
    assert maps.statuses() == ["ok", "empty" if not right else "not an image", "ok"]
    path.write_bytes(right)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert maps.again() == 0
    assert "nothing to do" in maps.run.printed
    assert maps.again(retry_failed=True) == 0
    assert maps.statuses() == ["ok"] * 3


def test_verify_finds_corruption_in_a_track(maps: Maps, capsys: pytest.CaptureFixture[str]) -> None:
    assert maps() == 0
    track_dir = track_path(maps.run.out, "segmentation")
    shard = shard_path(track_dir, "4x4", "segmentation", 1)
    data = bytearray(shard.read_bytes())
    data[3] ^= 4
    shard.write_bytes(data)
    assert verify.main([str(maps.run.out)]) == 1
    part = index_path(track_dir, "4x4", 1)
    printed = capsys.readouterr().out
    assert f"{shard}: corrupt in row 1" in printed
    assert f"remove {part} and run encode again" in printed
    intact = everything(maps.run.out / "g4x4/image")
    part.unlink()
    assert maps.again() == 0
    assert verify.main([str(maps.run.out)]) == 0
    assert everything(maps.run.out / "g4x4/image") == intact
    (track_dir / "_plan/0.parquet").unlink()
    assert verify.main([str(maps.run.out)]) == 1
    assert f"{track_dir / '_plan/0.parquet'}: missing" in capsys.readouterr().out


def test_rows_of_an_older_plan_are_removed(maps: Maps, tmp_path: Path) -> None:
    """A worker that outlived its driver committed them when the plan had been rewritten."""
    assert maps() == 0
    track_dir = track_path(maps.run.out, "segmentation")
    old = index_path(track_dir, "4x4", 1).read_bytes()
    shutil.copy(maps.labels / "1.png", maps.labels / "1.bmp")  # so that neither is the partner
    (maps.labels / "1.png").unlink()
    os.utime(maps.labels / "1.bmp", ns=(1, 1))
    assert maps.again() == 0
    index_path(track_dir, "4x4", 1).write_bytes(old)
    plan = read_plan(track_dir)
    assert plan is not None
    with pytest.raises(StoreError, match="of an earlier run"):
        check_as_planned(track_dir, [plan.tasks[1]])
    assert maps.again() == 0
    assert verify.main([str(maps.run.out)]) == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_workers_give_the_same_bytes(maps: Maps, tmp_path: Path) -> None:
    flags = {"track": (maps.flags["track"], "low_res=2")}
    assert maps(**flags) == 0  # workers of the images, then of each track
    alone = everything(maps.run.out)
    maps.run.out = tmp_path / "by-workers.zarr"
    assert maps(workers=2, **flags) == 0
    assert everything(maps.run.out) == alone
