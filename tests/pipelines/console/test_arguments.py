"""Words of a command line that are refused before anything is written."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from ops.config import ConfigError
from pipelines.console.arguments import check_words
from pipelines.console.smalti import commands

SCHEMES = ("s3", "S3", "gs", "az", "abfss", "http", "https", "hf", "memory", "hdfs", "file")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "{}"], "--out {}: "),
        (["--codes", "a.zarr", "{}"], "{}: "),
        (["{}", "--count", "3"], "{}: "),
        (["--prior={}"], "--prior={}: "),
        (["--track", "segmentation={}"], "--track segmentation={}: "),
        (["--condition=low_res={}"], "--condition=low_res={}: "),
    ],
)
def test_every_scheme_is_refused_by_name(scheme: str, words: list[str], named: str) -> None:
    uri = f"{scheme}://bucket/a b"
    with pytest.raises(ConfigError) as raised:
        check_words([word.format(uri) for word in words])
    message = str(raised.value)
    assert message.startswith(named.format(uri))
    assert f" {scheme.lower()}:// is not read" in message


@pytest.mark.parametrize(
    "word",
    [
        "./s3://x", "./s3:", "s3:", "s3:/x", "C:\\x", "C:/x", "/data/a:b", "a//b", "://x", "3://x",
        "lake=./s3:/x", "", "=", "图/é",
    ],
)  # fmt: skip
def test_local_names_are_paths(word: str) -> None:
    check_words(["--in", word])


def test_cluster_addresses_are_no_paths() -> None:
    check_words(["--address", "ray://head:10001", "--address=ray://head:10001"])
    with pytest.raises(ConfigError):
        check_words(["--out", "ray://head:10001"])


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["--out", "s3://b/x"], None),
        (["--out=gs://b/x", "--codes", "s3://b/1", "s3://b/2"], None),
        (["--in", "s3://b/x"], "--in s3://b/x: s3:// is not read or written. Copy"),
        (["--out", "hdfs://b/x"], "--out hdfs://b/x: hdfs:// is not read or written. Give"),
        (["--count", "3", "s3://b/x"], "s3://b/x: s3:// is not read or written. Copy"),
        (["--out", "x", "s3://b/x"], "s3://b/x: s3:// is not read or written. Copy"),
        (["--storage-option", "endpoint=http://127.0.0.1:9000"], None),
    ],
)
def test_uris_are_values_of_the_flags_that_take_them(words: list[str], refused: str | None) -> None:
    asked = {"--out": False, "--codes": True}
    if refused is None:
        check_words(words, asked)
    else:
        with pytest.raises(ConfigError) as raised:
            check_words(words, asked)
        assert str(raised.value).startswith(refused)


def test_a_positional_argument_may_be_a_uri() -> None:
    check_words(["s3://b/x", "--storage-option", "region=a"], {"": False})
    check_words(["--storage-option", "region=a", "s3://b/x"], {"": False})


def test_names_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--out caf.: not UTF-8\."):
        check_words(["--out", "caf\udce9"])


@pytest.mark.parametrize("name", sorted(commands()))
@pytest.mark.parametrize("word", ["hdfs://bucket/x", "caf\udce9"])
def test_every_command_refuses_before_it_writes(
    name: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"pipelines.{name}").main
    assert main(["--out", word]) == 2
    error = capsys.readouterr().err
    named = r"caf\udce9: not" if "caf" in word else "hdfs:"
    assert error.startswith(f"error: --out {named}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
