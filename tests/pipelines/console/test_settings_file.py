"""--config FILE.yaml, and the settings.yaml that commands write."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import tyro
import yaml

from ops.config import ConfigError, Range
from ops.object_paths import parse_path
from ops.web_paths import parse_source
from pipelines.console import PathOrURI, recorded_flags, run_command
from pipelines.console.settings_file import SETTINGS, read_settings, settings_text
from pipelines.flags import EncodeFlags


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Does a thing."""

    EXAMPLE: ClassVar[str] = "tiny --out there"

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """which"""
    in_: Annotated[tuple[Path, ...], tyro.conf.arg(name="in")]
    """from where"""
    out: PathOrURI
    """to where"""
    number: Annotated[int, Range(least=1)] = 1
    """how many"""
    rate: float | None = None
    """how fast"""
    adaptive: Literal["yes", "no"] | None = None
    """whether"""
    labels: tuple[str, ...] = ()
    """which classes"""
    size: Annotated[int, Range(least=1)] | Literal["auto"] = "auto"
    """how large"""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE"""
    dry_run: bool = False
    """write nothing"""


FULL = {
    "recipe": "tiny", "in": ["a", "b"], "out": "s3://bucket/x.zarr", "number": 3, "rate": 0.25,
    "adaptive": "no", "labels": ["3", "lake"], "size": 7, "track": ["low_res=4"], "dry_run": True,
}  # fmt: skip


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def parse(words):
    """The flags that a command line gives."""
    found = []
    assert run_command(Flags, lambda flags: found.append(flags) or 0, words, "pipelines.x") == 0
    return found[0]


def test_flags_written_as_settings_are_read_again(tmp_path):
    file = write(tmp_path / "a.yaml", yaml.safe_dump(FULL))
    flags = parse(["--config", str(file)])
    assert flags.out == parse_path("s3://bucket/x.zarr")
    assert (flags.in_, flags.number, flags.adaptive) == ((Path("a"), Path("b")), 3, "no")
    again = write(tmp_path / "b.yaml", settings_text("pipelines.x", flags))
    assert parse([f"--config={again}"]) == flags
    assert {f.name for f in dataclasses.fields(Flags)} == set(read_settings(again, Flags))


def test_the_command_line_replaces_what_the_file_says(tmp_path):
    file = write(tmp_path / "a.yaml", yaml.safe_dump({**FULL, "out": "there"}))
    words = ["--config", str(file), "other", "--number", "5", "--track", "depth=d", "--in", "c"]
    flags = parse([*words, "--no-dry-run"])
    assert (flags.recipe, flags.number, flags.rate) == ("other", 5, 0.25)
    assert (flags.track, flags.in_, flags.dry_run) == (("depth=d",), (Path("c"),), False)


def test_plain_yaml_means_what_it_looks_like(tmp_path):
    text = "recipe: tiny\nin: a\nout: b\nrate: 1e-4\nadaptive: yes\nlabels: [3, 7]\nsize: auto\n"
    flags = parse(["--config", str(write(tmp_path / "a.yaml", text))])
    assert (flags.in_, flags.rate, flags.adaptive) == ((Path("a"),), 1e-4, "yes")
    assert (flags.labels, flags.size) == (("3", "7"), "auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nunber: 3", "no key 'nunber'. Did you mean number?"),
        ("number: many", "number must be int, found 'many'"),
        ("number: 0", "number must be at least 1, found 0"),
        ("number: [1, 2]", "number must be int"),
        ("rate: yes", "rate must be float, found True"),
        ("adaptive: perhaps", "adaptive"),
        ("in: {a: b}", "in must be a path"),
        ("out: 3", "out must be a path, found 3"),
        ("in: s3://bucket/a", "s3:// is not read"),
        ("dry_run: 1", "dry_run must be bool"),
        ("number: null", "number must be int, found None"),
        ("- a\n- b", "lines of NAME: VALUE"),
        ("number: 1\nnumber: 2", "a key occurs twice"),
        ("a: &a [x]\nlabels: *a", "aliases"),
        ("number: !!python/object/apply:os.getcwd []", "not a YAML file of flags"),
        ("{" * 100, "not a YAML file of flags"),
        ("number: '\x00'", "not a YAML file of flags"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_key(text, message, tmp_path, capsys):
    file = write(tmp_path / "a.yaml", text)
    assert run_command(Flags, lambda flags: 0, ["--config", str(file)], "pipelines.x") == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    missing = str(tmp_path / "none.yaml")
    assert run_command(Flags, lambda flags: 0, ["--config", missing], "pipelines.x") == 2
    assert "none.yaml" in capsys.readouterr().err


def make_folder(flags):
    Path(str(flags.out)).mkdir(exist_ok=True)
    return 1


def test_a_folder_that_was_written_has_the_settings_it_was_made_with(tmp_path):
    out = tmp_path / "out"
    words = ["tiny", "--in", "a", "--out", str(out), "--number", "4"]
    assert run_command(Flags, make_folder, words, "pipelines.x") == 1
    written = out / SETTINGS
    assert parse(["--config", str(written)]).number == 4
    before = written.stat().st_mtime_ns
    run_command(Flags, make_folder, words, "pipelines.x")
    assert written.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("error", "is_written"), [(KeyboardInterrupt(), True), (ConfigError(), False)]
)
def test_interrupted_commands_write_settings_and_refused_ones_do_not(error, is_written, tmp_path):
    def run(flags):
        make_folder(flags)
        raise error

    run_command(Flags, run, ["tiny", "--in", "a", "--out", str(tmp_path / "o")], "pipelines.x")
    assert (tmp_path / "o" / SETTINGS).exists() == is_written


def test_a_dry_run_writes_no_settings(tmp_path):
    words = ["tiny", "--in", "a", "--out", str(tmp_path), "--dry-run"]
    run_command(Flags, make_folder, words, "pipelines.x")
    assert not (tmp_path / SETTINGS).exists()


SOURCES = ("photos", "s3://bucket/photos", "https://example.org/a.tar", "hf://datasets/me/photos")


def test_sources_of_every_kind_are_written_and_read_again(tmp_path):
    flags = EncodeFlags(in_=tuple(map(parse_source, SOURCES)), out=Path("codes.zarr"))
    path = write(tmp_path / "s.yaml", settings_text("pipelines.encode", flags))
    assert EncodeFlags(**read_settings(path, EncodeFlags)) == flags


def test_a_source_of_an_unknown_scheme_in_a_file_is_refused(tmp_path):
    path = write(tmp_path / "s.yaml", "in: ftp://example.org/a.tar\n")
    with pytest.raises(ConfigError, match="ftp:// is not read"):
        read_settings(path, EncodeFlags)


def test_credentials_are_written_to_no_file(tmp_path):
    secrets = [
        "secret_access_key=SECRET", "AWS_SESSION_TOKEN=SECRET", "access_key_id=SECRET",
        "azure_storage_sas_key=SECRET", "endpoint=http://me:SECRET@host", "service_account=SECRET",
    ]  # fmt: skip
    public = ("endpoint=http://host:9000", "AWS_REGION=us-east-1", "allow_http=true")
    flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), storage_option=(*secrets, *public))
    text = settings_text("pipelines.encode", flags)
    assert "SECRET" not in text
    path = write(tmp_path / "s.yaml", text)
    assert read_settings(path, EncodeFlags)["storage_option"] == public
    assert "SECRET" not in json.dumps(recorded_flags(flags))
