import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ops.files import exclusive_lock
from ops.images import to_image
from pipelines.generation.index import read_made_in
from pipelines.generation.settings import default_flush_every_rows
from pipelines.store import CodeStore
from prior import load_prior
from tests.encode_run import file_times
from tests.generate_run import LASTING, contents, everything, generate, image_in
from tokenizer import build_tokenizer, load_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def five(prior_run, tmp_path_factory):
    """Five samples in batches of two; tests must not change the folder."""
    out = tmp_path_factory.mktemp("five")
    assert generate(prior_run, out, "--count", 5, "--batch-size", 2) == 0
    return out


@pytest.fixture(scope="module")
def all_saves(prior_run, tmp_path_factory):
    """The same five, saved in every way, two a task; tests must not change the folder."""
    out = tmp_path_factory.mktemp("all")
    saves = ["--save", "images,codes", "tars", "--samples-per-task", 2]
    assert generate(prior_run, out, "--count", 5, "--batch-size", 2, *saves) == 0
    return out


def index_of(out):
    return pq.read_table(out / "index").sort_by("sample").to_pylist()


def test_every_sample_has_an_image_and_a_line(five):
    assert everything(five).keys() == {
        *LASTING, "generation.json", "grid.png", *(f"sample-0000{k}.png" for k in range(5)),
        *(f"index/0000{task}.parquet" for task in range(3)),
    }  # fmt: skip
    assert {image_in(path).shape for path in five.glob("sample-*.png")} == {(16, 24, 3)}
    assert len(set(contents(five).values())) == 5


def test_images_are_those_of_prior_and_tokenizer_one_by_one(five, prior_run):
    prior, tokenizer = load_prior(prior_run), load_tokenizer(prior_run / "tokenizer")
    factor = tokenizer.config.downsample_factor
    codes = prior.sample(-(-16 // factor), -(-24 // factor), count=5, batch_size=2)
    for k, line in enumerate(index_of(five)):
        expected = to_image(tokenizer.decode(codes[k][None], (16, 24)))[0]
        np.testing.assert_array_equal(image_in(five / f"sample-0000{k}.png"), expected)
        stored = codes[k].numpy().astype("<u2").tobytes()
        assert line["codes_hash"] == hashlib.sha256(stored).hexdigest()


def test_the_index_describes_every_sample(five):
    for k, line in enumerate(index_of(five)):
        data = (five / line["file"]).read_bytes()
        assert line.pop("codes_hash")
        assert line == {
            "sample": k, "seed": 0, "label": None, "status": "ok", "error": None,
            "file": f"sample-0000{k}.png", "checksum": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip


def test_generation_json_has_the_deciding_settings(five, prior_run):
    settings = json.loads((five / "generation.json").read_text())
    tokenizer = load_tokenizer(prior_run / "tokenizer")
    assert settings["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert settings["torch"] == torch.__version__
    expected = {
        "seed": 0, "width": 24, "height": 16, "stride": 2, "batch_size": 2, "threads": 1,
        "count": 5, "save": ["images"], "samples_per_task": 2,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


def test_a_folder_goes_on_under_another_torch_where_that_is_accepted(
    five, prior_run, tmp_path, capsys
):
    out = shutil.copytree(five, tmp_path / "out")
    path = out / "generation.json"
    record = json.loads(path.read_text()) | {"torch": "1.0"}
    path.write_text(json.dumps(record))
    more = ["--count", 6, "--batch-size", 2]
    assert generate(prior_run, out, *more) == 2
    assert "--accept torch-version" in capsys.readouterr().err
    assert generate(prior_run, out, *more, "--accept", "device") == 2
    assert generate(prior_run, out, *more, "--seed", 9) == 2
    assert "--accept" not in capsys.readouterr().err.rpartition("seed was")[2]
    assert generate(prior_run, out, *more, "--accept", "torch-version", "device") == 0
    assert json.loads(path.read_text())["torch"] == "1.0"


def test_the_precision_of_a_folder_is_recorded_and_kept(five, prior_run, tmp_path, capsys):
    out = shutil.copytree(five, tmp_path / "out")
    assert json.loads((out / "generation.json").read_text())["precision"] == "float32"
    more = ["--count", 6, "--batch-size", 2]
    other = ["--precision", "bfloat16"]
    assert generate(prior_run, out, *more, *other) == 2
    assert "precision was float32, is bfloat16" in capsys.readouterr().err
    assert generate(prior_run, out, *more, *other, "--allow-mixed") == 0
    # Sample 4 was in the folder, and its task is made again with sample 5.
    made = [(json.loads(text), rows) for text, rows in read_made_in(out, 2)]
    assert [(found["precision"], rows) for found, rows in made] == [
        ("bfloat16", ((1, 2),)), ("float32", ((0, 1),)),
    ]  # fmt: skip
    assert made[0][0]["torch"] == torch.__version__
    assert made[0][0]["device"] == "cpu"
    assert made[0][0]["device_name"]


def test_running_again_does_nothing(all_saves, prior_run, capsys):
    before = file_times(all_saves)
    again = ["--count", 5, "--batch-size", 2, "--save", "tars,images,codes"]
    assert generate(prior_run, all_saves, *again) == 0
    assert "nothing left to do, 5 were there" in capsys.readouterr().out
    assert file_times(all_saves) == before


@pytest.mark.parametrize(
    "gone",
    [
        "sample-00001.png",
        "index/00001.parquet",
        "tars/00002.tar",
        "codes.zarr/_index/2x3/0.parquet",
    ],
)
def test_removed_files_are_made_again(gone, all_saves, prior_run, tmp_path):
    out = shutil.copytree(all_saves, tmp_path / "out")
    assert (out / gone).is_file()
    (out / gone).unlink()
    again = ["--count", 5, "--batch-size", 2, "--save", "images,codes,tars"]
    assert generate(prior_run, out, *again) == 0
    assert everything(out) == everything(all_saves)


def test_one_sample_alone_is_the_same(five, all_saves, prior_run, tmp_path):
    flags = ["--count", 5, "--batch-size", 2, "--save", "images,codes", "--only", 3]
    assert generate(prior_run, tmp_path, *flags) == 0
    assert contents(tmp_path).keys() == {"sample-00003.png"}
    assert contents(tmp_path).items() <= contents(five).items()
    store = CodeStore.open(tmp_path / "codes.zarr")
    assert [row["status"] for row in index_of(tmp_path)] == ["not sampled", "ok"]
    (sampled,) = [store[place] for place in range(len(store))]
    np.testing.assert_array_equal(
        sampled["codes"], CodeStore.open(all_saves / "codes.zarr")[3]["codes"]
    )


def test_the_others_are_added_to_a_sample_made_alone(all_saves, prior_run, tmp_path):
    flags = ["--count", 5, "--batch-size", 2, "--save", "images,codes,tars"]
    assert generate(prior_run, tmp_path, *flags, "--only", 3) == 0
    assert generate(prior_run, tmp_path, *flags) == 0
    assert everything(tmp_path) == everything(all_saves)


@pytest.mark.parametrize("save", ["images", "codes", "tars", "images,codes,tars"])
def test_a_larger_count_later_gives_the_same_samples(save, prior_run, tmp_path):
    flags = ["--save", save, "--samples-per-task", 4]
    assert generate(prior_run, tmp_path / "grown", "--count", 2, *flags) == 0
    assert generate(prior_run, tmp_path / "grown", "--count", 5, "--save", save) == 0
    assert generate(prior_run, tmp_path / "whole", "--count", 5, "--batch-size", 2, *flags) == 0
    assert everything(tmp_path / "grown") == everything(tmp_path / "whole")


def test_a_smaller_count_asks_for_nothing_new(five, prior_run, capsys):
    before = everything(five)
    assert generate(prior_run, five, "--count", 2, "--batch-size", 2) == 0
    assert "nothing left to do, 2 were there" in capsys.readouterr().out
    assert everything(five) == before


def test_other_settings_in_the_same_folder_are_refused(five, prior_run, capsys):
    before = everything(five)
    flags = ["--seed", 1, "--top-k", 9, "--save", "codes"]
    assert generate(prior_run, five, "--count", 5, *flags) == 2
    error = capsys.readouterr().err
    assert "seed was 0, is 1" in error
    assert "top_k was None, is 9" in error
    assert "save was ['images'], is ['codes']" in error
    assert everything(five) == before


def test_a_folder_of_an_older_version_is_refused(five, prior_run, tmp_path, capsys):
    out = shutil.copytree(five, tmp_path / "out")
    record = json.loads((out / "generation.json").read_text())
    del record["format"]
    (out / "generation.json").write_text(json.dumps(record))
    assert generate(prior_run, out, "--count", 5, "--batch-size", 2) == 2
    assert "generation.json was written by an older version of smalti" in capsys.readouterr().err
    (out / "generation.json").unlink()
    assert generate(prior_run, out, "--count", 5, "--batch-size", 2) == 2
    assert contents(out) == contents(five)


def test_settings_without_samples_are_not_binding(prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--stride", 3) == 2
    assert generate(prior_run, tmp_path, "--count", 1) == 0


def test_a_second_driver_is_refused(prior_run, tmp_path, capsys):
    with exclusive_lock(tmp_path / "_staging" / "driver.lock"):
        assert generate(prior_run, tmp_path) == 2
    assert "is held by another process" in capsys.readouterr().err
    assert not (tmp_path / "generation.json").exists()


@pytest.mark.parametrize("size", ["5x3", "8x8", "75x41"])
def test_images_have_the_requested_size(size, prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--count", 1, "--size", size) == 0
    height, width, _ = image_in(tmp_path / "sample-00000.png").shape
    assert f"{width}x{height}" == size
    assert not (tmp_path / "grid.png").exists()


def test_large_images_are_shrunk_for_the_grid(prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--count", 2, "--size", "512x64") == 0
    assert image_in(tmp_path / "grid.png").shape == (32, 256 + 2 + 256, 3)


@pytest.mark.parametrize("words", [["wood", "0"], ["wood,lake"], ["2,0"], ["2,", "lake"]])
def test_labels_are_assigned_in_turn(words, labelled_run, tmp_path):
    flags = ["--count", 3, "--save", "codes", "--labels", *words]
    assert generate(labelled_run, tmp_path, *flags) == 0
    codes = load_prior(labelled_run).sample(2, 3, count=3, labels=[2, 0, 2])
    store = CodeStore.open(tmp_path / "codes.zarr")
    for k in range(3):
        np.testing.assert_array_equal(store[k]["codes"], codes[k].numpy())
        assert store.label_names[store[k]["label"]] == ("wood", "lake", "wood")[k]
    assert [line["label"] for line in index_of(tmp_path)] == [2, 0, 2]


def test_every_sampling_setting_reaches_the_prior(labelled_run, tmp_path):
    options = {
        "top_k": 200, "top_p": 0.9, "min_p": 0.01, "temperature": 1.5, "guidance_scale": 2.0,
        "guidance_schedule": "power-cosine", "guidance_power": 2.0,
    }  # fmt: skip
    flags = [word for k, v in options.items() for word in (f"--{k.replace('_', '-')}", v)]
    more = ["--labels", 1, "--save", "codes", "--size", "64x48", "--cache-memory", 0, "--count", 1]
    assert generate(labelled_run, tmp_path, *flags, *more) == 0
    prior, codes = load_prior(labelled_run), CodeStore.open(tmp_path / "codes.zarr")[0]["codes"]
    expected = prior.sample(6, 8, labels=[1], cache_memory=0, **options)[0]
    np.testing.assert_array_equal(codes, expected.numpy())
    assert (codes != prior.sample(6, 8, labels=[1])[0].numpy()).any()
    settings = json.loads((tmp_path / "generation.json").read_text())
    assert {name: settings[name] for name in options} == options


def test_preview_exists_only_while_sampling(five, prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--count", 5, "--batch-size", 2, "--preview") == 0
    assert everything(tmp_path) == everything(five)


def test_flushes_of_large_canvases_are_recorded(prior_run, tmp_path):
    assert default_flush_every_rows(127, 128, 16) is None
    assert default_flush_every_rows(128, 128, 16) == 64
    assert default_flush_every_rows(1250, 1250, 16) == 320
    assert default_flush_every_rows(64, 2000, 16) is None  # finished before the first flush
    flags = ["--count", 1, "--size", "48x80", "--keep-rows", 4]
    assert generate(prior_run, tmp_path, *flags) == 0
    assert json.loads((tmp_path / "generation.json").read_text())["flush_every_rows"] == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "12"], "WIDTHxHEIGHT"),
        (["--size", "0x8"], "WIDTHxHEIGHT"),
        (["--count", "0"], "--count"),
        (["--only", "4"], "--only"),
        (["--stride", "3"], "stride must be from 1 to 2"),
        (["--labels", "sea"], "No label 'sea'"),
        (["--labels", "3"], "0 to 2"),
        (["--labels", "lake,3"], "0 to 2"),
        (["--save", "photos"], "No thing to save 'photos'; there are images, codes, tars"),
        (["--save", ","], "names nothing"),
        (["--samples-per-task", "3", "--batch-size", "2"], "multiple of the batch size of 2"),
        (["--count", "70000", "--batch-size", "1", "--samples-per-task", "1"], "too many files"),
        (["--address", "here"], "--address needs --workers"),
        (["--keep-rows", "0"], "--keep-rows must be at least 1"),
        (["--temperature", "-1"], "temperature"),
        (["--batch-size", "0"], "--batch-size"),
        (["--device", "toaster"], "toaster"),
        (["--prior", "nowhere"], "nowhere"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(flags, message, labelled_run, tmp_path, capsys):
    assert generate(labelled_run, tmp_path / "out", *flags) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert message in error[0]
    assert not list(tmp_path.glob("out/sample-*"))


def test_a_foreign_tokenizer_is_refused(prior_run, tmp_path, capsys):
    run = shutil.copytree(prior_run, tmp_path / "run")
    save_tokenizer(run / "tokenizer", build_tokenizer("tiny", seed=1))
    assert generate(run, tmp_path / "out") == 2
    assert "would be noise" in capsys.readouterr().err


def test_a_missing_tokenizer_is_refused(prior_run, tmp_path, capsys):
    run = shutil.copytree(prior_run, tmp_path / "run")
    shutil.rmtree(run / "tokenizer")
    assert generate(run, tmp_path / "out") == 2
    assert "no folder `tokenizer`" in capsys.readouterr().err


@pytest.mark.ray
def test_workers_make_the_same_images(all_saves, prior_run, tmp_path, ray_local):
    flags = ["--count", 5, "--batch-size", 2, "--save", "images,codes,tars", "--workers", 2]
    assert generate(prior_run, tmp_path, *flags) == 0
    assert everything(tmp_path) == everything(all_saves)
