"""The README says what is true: its blocks run, on small inputs, in the order they stand.

Shell lines that call a command are first parsed as they stand by its own flags, then run in this
process with SMALLER in place of long figures. `make X` must be a target, and activating the
environment is taken as done. A block under `<!-- not run: why -->` is not run, but what Ray jobs
and manifests call must be our commands with flags that they have.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro
import yaml
from PIL import Image

from ops.images import decode_image
from tests.conftest import photograph

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
MAKE_TARGETS = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()  # type: ignore[index]

# What takes minutes in earnest: the words of a command that are replaced, and flags added to it.
SMALLER = {
    "256x256": "64x64", "512x512": "160x160", "1024x1024": "160x144", "2048x512": "160x80",
    "40": "3",
}  # fmt: skip
ADDED = {
    "train_prior": ["--steps", "2", "--batch-size", "1"],
    "train_tokenizer": ["--steps", "2", "--batch-size", "1", "--num-workers", "0"],
}


class Block(NamedTuple):
    language: str
    text: str
    run: bool


BLOCKS = [Block(language, text, not skip) for skip, language, text in BLOCK.findall(README)]

#: The lines that make a Ray token, which are run in a home of their own.
(TOKEN,) = [block for block in BLOCKS if "get-auth-token" in block.text]


def shell_lines(block: Block) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    return [line for line in lines if line]


def parse_only(
    flags: Any, run: Callable[[Any], int], argv: list[str], prog: str, **notes: Any
) -> int:
    """Stands in for run_command: the flags are read by the real command line, nothing is run."""
    tyro.cli(flags, args=argv, prog=prog)
    return 0


def parse_command(words: list[str]) -> Any:
    """Read the flags of `python -m pipelines.x ...` or `[python] pipelines/x.py ...`; the module
    and those flags."""
    words = words[1:] if words[0] == "python" else words
    words = words[1:] if words[0] == "-m" else words
    name = words[0].removesuffix(".py").replace("/", ".")
    assert name.startswith("pipelines."), f"no way to run {words}"
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "run_command", parse_only)
        assert module.main(words[1:]) == 0
    return module, words[1:]


def run_shell_line(words: list[str]) -> None:
    if words == [".", ".venv/bin/activate"]:
        return
    if words[0] == "make":
        assert words[1] in MAKE_TARGETS
        return
    module, flags = parse_command(words)
    smaller = [SMALLER.get(flag, flag) for flag in flags]
    assert module.main(smaller + ADDED.get(words[2].split(".")[1], [])) == 0


def test_readme_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("imgs", "segs"):
        (tmp_path / folder).mkdir()
    for name in ("photo", "other", "third"):
        image = Image.fromarray(photograph(len(name), 80, 100))
        image.save(tmp_path / "imgs" / f"{name}.jpg")
        image.quantize(9).save(tmp_path / "segs" / f"{name}.png")  # a palette's numbers are labels
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if block.language == "python" and block.run:
            exec(compile(block.text, "README.md", "exec"), names)
        elif block.language == "sh" and block.run and block is not TOKEN:
            for words in shell_lines(block):
                run_shell_line(words)
    assert names["codes"].shape == (2, 24, 32)
    assert decode_image(Path("again.png").read_bytes()).shape == (80, 100, 3)
    assert decode_image(Path("canvas/sample-00000.png").read_bytes()).shape == (144, 160, 3)


def test_token_lines_make_a_private_token_in_a_fresh_home(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-ec", TOKEN.text], capture_output=True, text=True, cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": f"{bin_folder}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert TOKEN.run
    assert done.returncode == 0, done.stderr
    file = tmp_path / ".ray" / "auth_token"
    assert len(file.read_text()) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(BLOCKS) == README.count("```") // 2 >= 6
    for block in BLOCKS:
        if block.language == "yaml":
            manifest = yaml.safe_load(block.text)
            assert manifest["kind"] == "RayJob"
            parse_command(shlex.split(manifest["spec"]["entrypoint"]))
        elif not block.run:
            assert block.language == "sh"
            for words in shell_lines(block):
                look_at_shell_line(words)


def look_at_shell_line(words: list[str]) -> None:
    """Hold a line that is not run to what can be known of it without running it."""
    if words[0] == "make":
        run_shell_line(words)
    elif words[:3] == ["ray", "job", "submit"]:
        parse_command(words[words.index("--") + 1 :])
    elif words[0] == "python":
        parse_command(words)
    else:
        assert words[0] in ("export", "ray")


def test_make_targets_are_documented() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for target in MAKE_TARGETS:
        assert f"make {target}" in README + contributing


def test_make_refuses_an_old_python_in_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")  # what the version check gives there
    old.chmod(0o755)
    command = ["make", "test", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_readme_names_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
