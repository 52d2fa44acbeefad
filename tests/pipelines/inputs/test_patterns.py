"""What the values of --in name: brace lists, globs, several paths, and what of them is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.inputs.listing import list_input
from pipelines.inputs.patterns import InputError, fixed_path, input_sources
from tests.pipelines.inputs.test_archives import PNG, write_tar


def shards(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(folder / name, {"1.png": PNG + name.encode()})


def keys(*inputs: Path) -> list[str]:
    return [entry.key for entry in list_input(inputs).entries]


def test_keys_of_a_pattern_are_those_below_its_fixed_folder(tmp_path: Path) -> None:
    shards(tmp_path, "a/s-00.tar", "a/s-01.tar", "b/s-00.tar")
    both = ["s-00.tar/1.png", "s-01.tar/1.png"]
    assert keys(tmp_path / "a/s-{00..01}.tar") == both
    assert keys(tmp_path / "a/*.tar") == both
    assert keys(tmp_path / "a/s-0[01].tar") == both
    # Keys do not depend on how many files there are: later shards leave them as they are.
    assert keys(tmp_path / "a/s-{00..00}.tar") == both[:1]
    assert keys(tmp_path / "{a,b}/s-00.tar") == ["a/s-00.tar/1.png", "b/s-00.tar/1.png"]
    assert keys(tmp_path / "**/*-00.tar") == ["a/s-00.tar/1.png", "b/s-00.tar/1.png"]
    assert fixed_path(tmp_path / "{a,b}/s-00.tar") == tmp_path
    assert fixed_path(tmp_path / "a") == tmp_path / "a"


def test_several_paths_have_their_base_names_in_the_keys(tmp_path: Path) -> None:
    shards(tmp_path, "a/s-00.tar", "a/s-01.tar", "b/s-00.tar")
    first, second = tmp_path / "a/s-00.tar", tmp_path / "a/s-01.tar"
    assert keys(first, second) == keys(tmp_path / "a/*.tar")  # as a shell writes it out
    assert keys(first) == ["1.png"]
    assert keys(first, first, second) == keys(first, second)
    (tmp_path / "x.png").write_bytes(PNG)
    assert keys(tmp_path / "b", tmp_path / "x.png") == ["b/s-00.tar/1.png", "x.png"]
    with pytest.raises(InputError, match="have one name"):
        keys(first, tmp_path / "b/s-00.tar")
    with pytest.raises(InputError, match="names nothing"):
        input_sources([])


def test_missing_files_of_a_brace_list_are_named_once(tmp_path: Path) -> None:
    shards(tmp_path, "s-00.tar", "s-01.tar")
    with pytest.raises(InputError) as caught:
        keys(tmp_path / "s-{00..09}.tar")
    message = str(caught.value)
    assert "8 of its 10 files do not exist" in message
    assert all(f"s-0{number}.tar" in message for number in (2, 3, 4))
    assert "s-05.tar" not in message
    assert "and 5 more" in message
    with pytest.raises(InputError, match="matches no file"):
        keys(tmp_path / "*.parquet")
    with pytest.raises(InputError, match="braces are not closed"):
        keys(tmp_path / "s-{00..01.tar")


@pytest.mark.parametrize(
    "name",
    [
        "{0..99999999999}", "{0..999}{0..999}{0..999}", "{-5..9999999999999999999}",
        "{" * 5000 + "a,b" + "}" * 5000,
    ],
)  # fmt: skip
def test_endless_brace_lists_are_refused_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        input_sources([tmp_path / name])


def test_names_that_exist_are_no_patterns(tmp_path: Path) -> None:
    for name in ("odd [1]{a,b}*?", "x{1..3}.tar"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(PNG)
        assert keys(tmp_path / name) == ["1.png"]
    os.symlink(tmp_path / "nowhere", tmp_path / "{a,b}")
    with pytest.raises(InputError, match="does not exist"):
        keys(tmp_path / "{a,b}")
