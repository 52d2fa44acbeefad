"""Images of streamed tars: the same order for any ranks, workers and kills, without a listing."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ops.config import UserError
from ops.ranks import Ranks
from pipelines import train_tokenizer
from pipelines.inputs import Ledger, held_out, list_input
from pipelines.training import tar_streams
from pipelines.training.image_dataset import load_batches
from pipelines.training.streamed_crops import PositionLog, StreamedCrops, stream_count
from pipelines.training.tar_streams import TarStreams, expand_tars
from tests.conftest import examples

SHARE = 0.2


def write_tar(path: Path, values: range, *, more: dict[str, bytes] | None = None) -> None:
    """A tar of small images, each of one colour."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        members = {f"{value:04d}.cls": b"7" for value in values}
        for value in values:
            file = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(file, "PNG")
            members[f"{value:04d}.png"] = file.getvalue()
        for name, data in sorted((members | (more or {})).items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tars of 12 images of as many colours; do not change it."""
    folder = tmp_path_factory.mktemp("tars")
    for number in range(5):
        write_tar(folder / f"{number:02d}.tar", range(12 * number, 12 * number + 12))
    return folder


def streams_of(folder: Path, **changed: Any) -> TarStreams:
    defaults: dict[str, Any] = {
        "count": 2, "buffer": 5, "seed": 0, "held_out_share": SHARE, "starts": {},
    }  # fmt: skip
    return TarStreams(expand_tars(folder), **{**defaults, **changed})


def crops_of(folder: Path, run: Path, rank: int = 0, **changed: Any) -> StreamedCrops:
    """Crops in batches of 4; each crop's colour names its image."""
    run.mkdir(exist_ok=True)
    defaults: dict[str, Any] = {"batch_size": 4, "buffer": 5, "held_out_share": SHARE, "seed": 0}
    return StreamedCrops(
        expand_tars(folder),
        PositionLog(run, rank, {"name": "test"}),
        crop_size=8,
        scale_range=(8, 8),
        **{**defaults, **changed},
    )


def batches(crops: StreamedCrops, run: Path, *steps: int, **settings: Any) -> list[list[float]]:
    """The colours of each batch."""
    loaded = load_batches(crops, Ledger(run / "bad.jsonl"), *steps, **settings)
    return [((batch.mean((1, 2, 3)) + 1) * 127.5).round().tolist() for batch in loaded]


@settings(max_examples=examples(15))
@given(count=st.integers(1, 5), buffer=st.integers(1, 80), seed=st.integers(0, 9))
def test_every_image_comes_about_equally_often(
    folder: Path, count: int, buffer: int, seed: int
) -> None:
    streams = streams_of(folder, count=count, buffer=buffer, seed=seed)
    images = {e.key for e in list_input(folder).entries if not held_out(e.key, SHARE)}
    (first,) = [streams.block(0, 0).entries]
    assert len(first) == buffer  # blocks are full, across tars and epochs
    if count == 1:  # one stream has each image once an epoch
        wanted = len(images)
        blocks = [streams.block(0, number).entries for number in range(-(-wanted // buffer))]
        walked = sorted(e.key for block in blocks[:-1] for e in block)
        assert len(walked) == len(set(walked))
        assert set(walked) <= images
    assert {entry.key for entry in first} <= images


def test_a_stream_has_each_image_once_an_epoch(folder: Path) -> None:
    images = {e.key for e in list_input(folder).entries if not held_out(e.key, SHARE)}
    streams = streams_of(folder, count=1, buffer=len(images))
    epochs = [[e.key for e in streams.block(0, number).entries] for number in range(3)]
    assert all(set(epoch) == images for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_tars_are_dealt_to_the_streams(folder: Path) -> None:
    """The first images of both streams are of different tars, and together of all of them."""
    streams = streams_of(folder, buffer=20)
    tars = [{e.key.split("/")[0] for e in streams.block(stream, 0).entries} for stream in (0, 1)]
    assert not tars[0] & tars[1]


def test_held_out_images_are_those_of_a_listing(folder: Path) -> None:
    listed = [entry for entry in list_input(folder).entries if held_out(entry.key, SHARE)]
    assert streams_of(folder).measured(100) == listed
    assert streams_of(folder).measured(2) == listed[:2]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_same_batches(folder: Path, tmp_path: Path, world: int) -> None:
    whole = batches(crops_of(folder, tmp_path / "whole"), tmp_path, 0, 12)
    parts = [
        batches(crops_of(folder, tmp_path / "run", rank), tmp_path, 0, 12, ranks=Ranks(rank, world))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        assert [parts[place % world][step][place // world] for place in range(4)] == batch
    assert len({colour for batch in whole for colour in batch}) > 20


def test_loader_workers_make_the_same_batches(folder: Path, tmp_path: Path) -> None:
    """Each of three gets its own copy, and makes every third batch, as a DataLoader has it."""
    crops = crops_of(folder, tmp_path)
    whole = batches(crops, tmp_path, 0, 12)
    for worker in range(3):
        copied = pickle.loads(pickle.dumps(crops))
        steps = range(worker, 12, 3)
        found = [batches(copied, tmp_path, step, step + 1)[0] for step in steps]
        assert found == whole[worker::3]


def test_resuming_finds_tar_and_image_by_the_log(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    entries = tar_streams.tar_entries

    def watched(path: str, key: str) -> Any:
        opened.append(key)
        return entries(path, key)

    whole = batches(crops_of(folder, tmp_path / "whole"), tmp_path, 0, 60)
    batches(crops_of(folder, tmp_path / "run"), tmp_path, 0, 53)
    monkeypatch.setattr(tar_streams, "tar_entries", watched)
    with open(tmp_path / "run/stream_positions-0.jsonl", "ab") as file:
        file.write(b'["cut short')
    assert batches(crops_of(folder, tmp_path / "run"), tmp_path, 53, 60) == whole[53:]
    assert len(opened) <= 8  # 28 images of two streams; from the beginning it would be 24 tars
    opened.clear()
    assert batches(crops_of(folder, tmp_path / "none"), tmp_path, 53, 60) == whole[53:]
    assert len(opened) > 20


def test_positions_of_another_order_are_not_used(folder: Path, tmp_path: Path) -> None:
    batches(crops_of(folder, tmp_path), tmp_path, 0, 20)
    assert PositionLog(tmp_path, 1, {"name": "test"}).known
    assert not PositionLog(tmp_path, 1, {"name": "another"}).known


def test_tars_and_images_that_cannot_be_read_are_in_the_ledger(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "a.tar", range(8), more={"0003.png": b"no image"})
    write_tar(tars / "b.tar", range(8, 16))
    whole = (tars / "b.tar").read_bytes()
    (tars / "b.tar").write_bytes(whole[: len(whole) * 2 // 3])
    (tars / "c.tar").write_bytes(b"no tar at all" * 99)
    run = tmp_path / "run"
    found = batches(crops_of(tars, run, held_out_share=0), run, 0, 20)
    lines = map(json.loads, (run / "bad.jsonl").read_text().splitlines())
    reasons = {line["key"]: line["reason"] for line in lines}
    assert set(reasons) == {"a.tar/0003.png", "b.tar", "c.tar"}
    assert "not a tar file" in reasons["c.tar"]
    colours = Counter(colour for batch in found for colour in batch)
    assert set(range(8)) - {3} <= set(colours) <= set(range(16)) - {3, 15}


def test_tars_without_images_end_the_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", range(0), more={"caption.txt": b"nothing"})
    with pytest.raises(UserError, match="Not one image can be read"):
        batches(crops_of(tmp_path, tmp_path), tmp_path, 0, 1)


def test_patterns_are_those_of_encode(folder: Path, tmp_path: Path) -> None:
    keys = [tar.key for tar in expand_tars(folder / "{00..02}.tar")]
    assert keys == ["00.tar", "01.tar", "02.tar"]
    assert [tar.key for tar in expand_tars(folder)] == [f"0{n}.tar" for n in range(5)]
    assert [tar.key for tar in expand_tars(folder / "{03,01}.tar")] == ["01.tar", "03.tar"]
    assert [tar.key for tar in expand_tars(folder / "0[12].tar")] == ["01.tar", "02.tar"]
    assert [tar.key for tar in expand_tars(folder / "04.tar")] == ["04.tar"]
    for data, said in (
        (folder / "{03..05}.tar", r"1 of its 3 files do not exist: .*05\.tar"),
        (folder / "{000..99999999999}.tar", "more than 1,000,000 files"),
        (folder / "06.tar", "does not exist"),
        (tmp_path, "holds no tar file"),
        (Path(__file__), "is none by name"),
    ):
        with pytest.raises(UserError, match=said):
            expand_tars(data)


@given(batch_size=st.integers(1, 300), tars=st.integers(1, 5000))
def test_streams_divide_the_batch(batch_size: int, tars: int) -> None:
    count = stream_count(batch_size, tars)
    assert batch_size % count == 0
    assert 1 <= count <= min(batch_size, tars)


def test_a_run_streams_and_resumes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(out: str, steps: int, *more: str) -> int:
        words = ["tiny", "--data", str(folder / "{00..04}.tar"), "--stream", "--steps", str(steps)]
        small = ["--crop-size", "8", "--batch-size", "2", "--held-out", "0", "--num-workers", "0"]
        losses = ["--perceptual", "none", "--adversarial", "none", "--out", str(tmp_path / out)]
        return train_tokenizer.main([*words, *small, *losses, *more])

    assert train("whole", 2, "--shuffle-buffer", "3", "--save-every", "1") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/step-00000002")
    assert train("parts", 2, "--shuffle-buffer", "3") == 0
    weights = [tmp_path / out / "step-00000002/model.safetensors" for out in ("whole", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    capsys.readouterr()
    assert train("parts", 4, "--shuffle-buffer", "4") == 2
    assert "shuffle_buffer" in capsys.readouterr().err
    assert train("none", 4, "--targets", str(folder)) == 2
    assert train("none", 4, "--dry-run") == 0
    assert "tars are streamed" in capsys.readouterr().out
