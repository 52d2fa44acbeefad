"""Samples, exports and reports in object stores: the objects are the files of those on a disk."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ops import paths
from ops.cache_folder import CACHE_VARIABLE
from ops.paths import AnyPath, ObjectPath
from pipelines import encode, evaluate, export, generate, report, train_prior
from prior import LowResolution, StartOfSequence
from tests.cascade_run import make_prior
from tests.crashes.encode_processes import exit_code, start
from tests.generate_run import LASTING, everything, words
from tests.object_servers import S3, in_turn, proxy

SAVES = ["--save", "images,codes,tars", "--count", 5, "--batch-size", 2, "--samples-per-task", 2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, short_waits: None, cache: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))


def upload(folder: Path, place: ObjectPath) -> ObjectPath:
    for name, data in everything(folder).items():
        paths.write_whole(place / name, data)
    return place


@pytest.fixture(scope="module")
def on_disk(prior_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("samples") / "out"
    assert generate.main(words(prior_run, out, *SAVES)) == 0
    return {name: data for name, data in everything(out).items() if name not in LASTING}


def generate_at(options: dict[str, str], run: AnyPath, out: ObjectPath) -> int:
    with paths.storage_options(options):
        return generate.main(words(run, out, *SAVES))


def test_samples_of_a_prior_in_the_store_are_the_files_of_a_folder(
    on_disk: dict[str, bytes], prior_run: Path, s3: S3, bucket: ObjectPath
) -> None:
    run, out = upload(prior_run, bucket / "run"), bucket / "out"
    fewer = [*SAVES, "--count", 3]
    assert generate.main(words(run, out, *fewer)) == 0
    assert generate.main(words(run, out, *SAVES)) == 0
    assert s3.objects(out) == on_disk
    paths.remove(out / "sample-00001.png")
    paths.remove(out / "codes.zarr" / "_index" / "2x3" / "1.parquet")
    assert generate_at(s3.options, prior_run, out) == 0  # made again
    assert s3.objects(out) == on_disk


def test_a_cascade_in_the_store_is_that_of_a_folder(
    s3: S3, bucket: ObjectPath, tmp_path: Path
) -> None:
    base = make_prior(tmp_path / "base", "tiny", StartOfSequence())
    upscaler = make_prior(tmp_path / "upscaler", "tiny-local", LowResolution)
    more = ["--upscale", upload(upscaler, bucket / "upscaler"), "--size", "40x24", "--count", 2]
    assert generate.main(words(base, tmp_path / "out", *more)) == 0
    assert generate.main(words(base, bucket / "out", *more)) == 0
    expected = {n: d for n, d in everything(tmp_path / "out").items() if "driver.lock" not in n}
    assert s3.objects(bucket / "out") == expected
    assert any(name.startswith("stages/") for name in expected)


def test_faults_between_generate_and_the_store_change_nothing(
    on_disk: dict[str, bytes], prior_run: Path, s3: S3
) -> None:
    faults = ("503", "reset", "lost", "twice")
    with proxy(s3, in_turn(faults, every=4)) as before:
        out = s3.bucket() / "out"
        assert generate_at(before.options, prior_run, out) == 0
        assert min(before.counts[fault] for fault in faults) > 3
    assert s3.objects(out) == on_disk


def test_killed_generate_is_resumed_to_the_same_objects(
    on_disk: dict[str, bytes], prior_run: Path, s3: S3
) -> None:
    requests, running = count(), list[BaseProcess]()

    def kill(method: str, path: str) -> str:
        if method == "PUT" and next(requests) == 25:
            running[0].kill()
        return ""

    out = s3.bucket() / "out"
    with proxy(s3, kill) as before:
        running.append(start(generate_at, before.options, prior_run, out))
        assert exit_code(running[0]) == -9
    assert s3.objects(out) != on_disk
    assert generate_at(s3.options, prior_run, out) == 0
    assert s3.objects(out) == on_disk


@pytest.mark.parametrize("to", ["npy", "images"])
def test_an_export_has_the_files_of_one_on_a_disk(
    to: str, rule_store: Path, s3: S3, bucket: ObjectPath, tmp_path: Path
) -> None:
    store = upload(rule_store, bucket / "codes.zarr")
    assert export.main(["store", str(rule_store), "--to", to, "--out", str(tmp_path / "out")]) == 0
    command = ["store", str(store), "--to", to, "--out", str(bucket / "out")]
    assert export.main(command) == 0
    expected = {n: d for n, d in everything(tmp_path / "out").items() if "driver.lock" not in n}
    assert s3.objects(bucket / "out") == expected
    paths.remove(next(iter(paths.matching(bucket / "out", "_export/*.json"))))
    assert export.main(command) == 0
    assert s3.objects(bucket / "out") == expected
    assert export.main([*command[:-1], str(store)]) == 2  # other objects are there


def test_a_report_shows_stores_runs_and_samples_in_the_store(
    on_disk: dict[str, bytes],
    rule_store: Path,
    prior_run: Path,
    bucket: ObjectPath,
    tmp_path: Path,
) -> None:
    for name, data in on_disk.items():
        paths.write_whole(bucket / "all" / "samples" / name, data)
    upload(rule_store, bucket / "all" / "codes.zarr")
    upload(prior_run, bucket / "all" / "run")
    paths.write_whole(bucket / "all" / "run" / "metrics.jsonl", b'{"step": 1, "loss": 2.0}\n')
    assert report.main([str(bucket / "all"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for title in ("Samples: samples", "Codes: codes.zarr", "Training: run", "sample-00004"):
        assert title in page
    assert report.main([str(bucket / "all" / "samples")]) == 0
    assert b"sample-00004" in paths.read_whole(bucket / "all" / "samples" / "report.html")


def test_a_prior_is_trained_and_evaluated_from_the_store_to_the_store(
    rule_store: Path, bucket: ObjectPath, tmp_path: Path
) -> None:
    store, run = upload(rule_store, bucket / "codes.zarr"), bucket / "run"
    command = ["tiny", "--codes", str(store), "--out", str(run), "--steps", "2", "--threads", "1"]
    command += ["--sample-every", "2", "--batch-size", "2", "--window", "4"]
    command += ["--cache-dir", str(tmp_path / "shards")]
    assert train_prior.main(command) == 0
    assert train_prior.main(command) == 0  # nothing left to do
    measured = ["prior", str(run), "--data", str(store), "--out", str(tmp_path / "m.json")]
    assert evaluate.main([*measured, "--held-out", "1", "--most", "2"]) == 0
    out = bucket / "samples"
    assert generate.main(words(run, out, "--count", 1)) == 0
    assert paths.exists(out / "sample-00000.png")


# --- bad input


def test_what_a_store_refuses_is_one_line(
    prior_run: Path, s3: S3, bucket: ObjectPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(main: Callable[[list[str]], int], *words: object) -> str:
        assert main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return str(line)

    out = ["--out", tmp_path / "out"]
    assert "no such bucket" in fails(generate.main, "--prior", "s3://no-such-bucket/run", *out)
    assert "neither a model folder" in fails(generate.main, "--prior", bucket / "none", *out)
    small = ["--prior", prior_run, "--size", "24x16", "--count", "1"]
    missing = "s3://no-such-bucket/out"
    assert "no such bucket" in fails(generate.main, *small, "--out", missing)
    assert "not a folder" in fails(report.main, bucket / "none")
    assert "no such bucket" in fails(
        encode.main, "--in", tmp_path, "--out", tmp_path / "c.zarr", "--tokenizer", missing
    )
    dead = ["--storage-option", "endpoint=http://127.0.0.1:9"]
    assert "http://127.0.0.1:9" in fails(generate.main, *small, "--out", bucket / "out", *dead)
    with proxy(s3, lambda method, path: "403" if method == "PUT" else "") as before:
        read_only = ["--storage-option", f"endpoint={before.options['endpoint']}"]
        line = fails(generate.main, *small, "--out", bucket / "out", *read_only)
    assert "access denied" in line
