"""--help and errors of a command line need no library that takes seconds to import."""

import json
import subprocess
import sys

import pytest

from pipelines.flags import COMMAND_FLAGS

HEAVY = ("torch", "ray", "pyarrow", "matplotlib", "zarr", "numpy", "torchvision", "lpips")
#: Runs every command twice in one process: once for its help, once with a flag that it lacks.
SCRIPT = f"""
import contextlib, importlib, io, json, sys
found = {{}}
for name in {sorted(COMMAND_FLAGS)!r}:
    texts = []
    for words in (["--help"], ["--no-such-flag"]):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            with contextlib.suppress(SystemExit):
                importlib.import_module(f"pipelines.{{name}}").main(words)
        texts.append(text.getvalue())
    found[name] = [*texts, [each for each in {HEAVY!r} if each in sys.modules]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(COMMAND_FLAGS))
def test_help_and_usage_errors_import_nothing_heavy(answers, name):
    help_text, error, heavy = answers[name]
    assert not heavy
    assert f"pipelines.{name}" in help_text
    assert f"pipelines.{name} --help" in error


@pytest.mark.parametrize("name", sorted(COMMAND_FLAGS))
def test_help_shows_groups_defaults_and_an_example(answers, name):
    text = answers[name][0]
    assert "input options" in text or "positional arguments" in text
    assert "advanced options" in text
    assert "--config PATH" in text
    assert "(default: None)" not in text
    assert text.splitlines()[-2:] == [
        "example:", f"  python -m pipelines.{name} {COMMAND_FLAGS[name].EXAMPLE}"
    ]  # fmt: skip


def test_defaults_of_recipes_are_named_as_such(answers):
    words = " ".join(answers["train_prior"][0].replace("│", "").split())
    assert "train until this many steps are done (default: the recipe's)" in words


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_printed_for_a_shell(shell, capsys):
    from pipelines.console.smalti import main

    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--image-size" in script
    assert "--guidance-scale" in script
    assert main(["--print-completion", "csh"]) == 2
    assert "needs one of bash, zsh" in capsys.readouterr().err


def test_bash_completes_commands_and_flags(tmp_path, capsys):
    from pipelines.console.smalti import main

    main(["--print-completion", "bash"])
    (tmp_path / "smalti.bash").write_text(capsys.readouterr().out)
    script = """
    source smalti.bash
    complete_words() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_smalti; echo "${COMPREPLY[@]}"
    }
    complete_words smalti enc
    complete_words smalti encode --image-s
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["encode", "--image-size"]
