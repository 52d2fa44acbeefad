"""The documents say what is true: their blocks run, on small inputs, in the order they stand.

Shell lines that call a command are first parsed as they stand by its own flags, then run in this
process with SMALLER in place of long figures and ADDED flags, once each, whatever document they
stand in. `make X` must be a target, and activating the environment is taken as done. A block under
`<!-- not run: why -->` is not run, but what Ray jobs and manifests call must be our commands with
flags that they have. So must commands within a line of text.
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
from pipelines.console.grouped_flags import grouped
from tests.conftest import photograph

ROOT = Path(__file__).parents[1]
#: Read by users in about this order, which is that of the blocks.
DOCUMENTS = (
    "README.md", "tokenizer/README.md", "prior/README.md", "pipelines/README.md",
    "pipelines/store/README.md", "pipelines/jobs/README.md", "pipelines/FAQ.md", "tests/README.md",
)  # fmt: skip
TEXTS = {name: (ROOT / name).read_text() for name in DOCUMENTS}
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
MAKE_TARGETS = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()  # type: ignore[index]

# What takes minutes in earnest: the words of a command that are replaced, and flags added to it.
SMALLER = {
    "256x256": "64x64", "512x512": "160x160", "1024x1024": "160x144", "2048x512": "160x80",
    "40": "3",
}  # fmt: skip
ADDED = {
    "encode": ["--image-size", "64"],
    "evaluate tokenizer": ["--image-size", "64"],
    "train_prior": ["--steps", "2", "--batch-size", "1", "--window", "8"],
    "train_tokenizer": ["--steps", "2", "--batch-size", "1", "--num-workers", "0"],
}


class Block(NamedTuple):
    language: str
    text: str
    run: bool


BLOCKS = [
    Block(language, block, not skip)
    for text in TEXTS.values()
    for skip, language, block in BLOCK.findall(text)
]

#: The lines that make a Ray token, which are run in a home of their own.
(TOKEN,) = [block for block in BLOCKS if "get-auth-token" in block.text]


def shell_lines(block: Block) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    return [line for line in lines if line]


def parse_only(
    flags: Any, run: Callable[[Any], int], argv: list[str], prog: str, **notes: Any
) -> int:
    """Stands in for run_command: the flags are read by the real command line, nothing is run."""
    in_file = "--config" in argv  # required flags may be in that file: such lines are run
    if argv[0] not in notes.get("lists", ()) and not in_file:
        tyro.cli(grouped(flags, {}), args=argv, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
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
    if flags[0].startswith("--list-"):
        assert module.main(flags) == 0
        return
    smaller = [SMALLER.get(flag, flag) for flag in flags]
    command = words[2].split(".")[1]
    added = ADDED.get(command, []) + ADDED.get(f"{command} {flags[0]}", [])
    assert module.main(smaller + added) == 0


def test_blocks_of_the_documents_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("imgs", "segs"):
        (tmp_path / folder).mkdir()
    for name in ("photo", "other", "third"):
        image = Image.fromarray(photograph(len(name), 80, 100))
        image.save(tmp_path / "imgs" / f"{name}.jpg")
        image.quantize(9).save(tmp_path / "segs" / f"{name}.png")  # a palette's numbers are labels
    names: dict[str, Any] = {}
    done: set[tuple[str, ...]] = set()
    for block in BLOCKS:
        if block.language == "python" and block.run:
            text = block.text.replace("g32x32", "g8x8")  # as ADDED encodes the images
            exec(compile(text, "README.md", "exec"), names)
            names.setdefault("first_codes", names["codes"])
        elif block.language == "sh" and block.run and block is not TOKEN:
            for words in shell_lines(block):
                if tuple(words) not in done:
                    run_shell_line(words)
                done.add(tuple(words))
    assert names["first_codes"].shape == (2, 24, 32)
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
    assert len(BLOCKS) == sum(text.count("```") for text in TEXTS.values()) // 2 >= 25
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
        # Of Ray, of Slurm and of the shell.
        assert words[0] in ("export", "ray", "eval", "srun", "sleep") or "=$(" in words[0]


def test_commands_within_the_text_have_flags_that_they_have() -> None:
    for text in TEXTS.values():
        for command in re.findall(r"`python ([^`]+)`", BLOCK.sub("", text)):
            words = shlex.split(command.replace("\n", " "))
            if words[0].startswith("tests/"):
                assert (ROOT / words[0]).exists(), command
            elif words[0] == "-m" and len(words) > 2 and "..." not in words:
                parse_command(["python", *words])


def test_the_front_page_is_short() -> None:
    assert len(TEXTS["README.md"].split()) < 1000


def test_make_targets_are_documented() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for target in MAKE_TARGETS:
        assert f"make {target}" in "".join(TEXTS.values()) + contributing


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


def test_documents_name_files_and_headings_that_exist() -> None:
    for name, text in TEXTS.items():
        for target, _, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", text):
            path = (ROOT / name).parent / target if target else ROOT / name
            assert path.exists(), f"{name}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
                assert heading in {h.lower().replace(" ", "-") for h in headings}, heading


def test_every_document_is_in_the_list() -> None:
    others = {"CONTRIBUTING.md", "pipelines/CHANGELOG.md"}
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("", "ops", "tokenizer", "prior", "pipelines", "tests")
        for path in ((ROOT / folder).rglob("*.md") if folder else ROOT.glob("*.md"))
        if not {"results", "weights"} & set(path.parts)
    }
    assert found == set(DOCUMENTS) | others
