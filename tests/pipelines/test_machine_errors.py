"""Paths that cannot be used and limits of the machine: one line, exit code 2, in every command."""

from __future__ import annotations

import contextlib
import importlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.pipelines.test_import_prior import net2net
from tests.prior.published_gpt import HEADS, WINDOW
from tests.tokenizer.published_weights import GROUPS, compvis_vqgan

#: Outputs that cannot be made, in a folder that has a file `file` and a link `loop` to itself.
PLACES = {
    "name too long": "n" * 300,
    "below a file": "file/x/y",
    "below a link to itself": "loop/x",
    "not writable": "/proc/smalti/x",
}
FOLDERS = ("encode", "generate", "train_tokenizer", "train_prior", "import_tokenizer",
           "import_prior", "study", "demo")  # fmt: skip
FILES = ("evaluate", "report")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.save({"state_dict": net2net(), "global_step": 5}, folder / "prior.ckpt")
    torch.save(compvis_vqgan(), folder / "vqgan.ckpt")
    return folder


@pytest.fixture
def words_of(
    photographs: Path, tiny_tokenizer: Path, rule_store: Path, prior_run: Path, checkpoints: Path
) -> Callable[[str, object], list[str]]:
    """The words of a small call of a command that writes to --out."""
    training = ["--steps", 1, "--batch-size", 2, "--threads", 1, "--device", "cpu"]
    words = {
        "encode": ["--in", photographs, "--tokenizer", tiny_tokenizer, "--image-size", 16],
        "generate": ["--prior", prior_run, "--count", 1, "--size", "8x8"],
        "train_tokenizer": ["tiny", "--data", photographs, "--crop-size", 16, *training],
        "train_prior": ["tiny", "--codes", rule_store, "--window", 4, *training],
        "import_tokenizer": ["compvis", checkpoints / "vqgan.ckpt", "--norm-groups", GROUPS],
        "import_prior": [
            "compvis", checkpoints / "prior.ckpt", "--norm-groups", GROUPS, "--window", WINDOW,
            "--num-heads", HEADS,
        ],
        "evaluate": ["tokenizer", tiny_tokenizer, "--data", photographs, "--image-size", 16],
        "report": [rule_store],
        "study": ["downsampling", "--data", photographs, "--seeds", 0],
        "demo": ["--images", photographs],
    }  # fmt: skip
    return lambda name, out: [*map(str, words[name]), "--out", str(out)]


def run(name: str, words: list[str]) -> int:
    code: int = importlib.import_module(f"pipelines.{name}").main(words)
    return code


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error, below lines of progress."""
    *progress, line = capsys.readouterr().err.splitlines()
    assert not [other for other in progress if "rror" in other]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_output_that_cannot_be_made_is_one_line(
    name: str,
    place: str,
    words_of: Callable[[str, object], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    out = tmp_path / PLACES[place]
    assert run(name, words_of(name, out)) == 2
    line = the_line(capsys)
    assert "nnnnnn" in line or str(out.parent).rpartition("/")[0] in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_output_of_the_wrong_kind_is_one_line(
    name: str,
    words_of: Callable[[str, object], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "taken"
    if name in FILES:
        (out / "mine").mkdir(parents=True)
    else:
        out.write_text("mine")
    assert run(name, words_of(name, out)) == 2
    assert str(out) in the_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert out.is_dir() == (name in FILES)


@contextlib.contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """A soft limit of this process, as `ulimit` sets."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize(
    ("name", "most"),
    [*((name, 0) for name in (*FOLDERS[:6], *FILES)), ("train_prior", 700), ("encode", 700)],
)
def test_limit_on_the_size_of_files_is_one_line_and_the_next_run_finishes(
    name: str,
    most: int,
    words_of: Callable[[str, object], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(name, tmp_path / "out")
    with limited(resource.RLIMIT_FSIZE, most):
        code = run(name, words)
    assert code == 2
    assert "File too large" in the_line(capsys)
    if name in ("encode", "train_prior"):
        assert run(name, words) == 0


@pytest.mark.parametrize("name", [*FOLDERS[:6], *FILES])
def test_limit_on_open_files_is_one_line(
    name: str,
    words_of: Callable[[str, object], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(name, tmp_path / "out")
    with limited(resource.RLIMIT_NOFILE, 3):
        code = run(name, words)
    assert code == 2
    assert "Too many open files" in the_line(capsys)


INPUTS = {
    "encode": "--in", "generate": "--prior", "train_tokenizer": "--data", "train_prior": "--codes",
    "study": "--data", "demo": "--images", "evaluate": "--data",
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_output_that_is_the_input_is_one_line(
    name: str,
    words_of: Callable[[str, object], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(name, "")
    place = words[words.index(INPUTS[name]) + 1]
    link = tmp_path / "link"
    link.symlink_to(place)
    before = sorted(Path(place).rglob("*"))
    for out in (place, link):
        assert run(name, [*words[:-1], str(out)]) == 2
        assert the_line(capsys) == (
            f"error: --out {out} has other files in it: {INPUTS[name]} names it, too. "
            "Name another one."
        )
    assert sorted(Path(place).rglob("*")) == before
