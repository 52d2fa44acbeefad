"""What a command may do with any input: all of it, skip with a reason, or refuse in one line."""

from __future__ import annotations

import re
import signal
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from tests.fuzz.sandbox import GOOD, Run

# What a progress bar prints where stderr is no terminal.
PROGRESS = re.compile(r"[\w ]+ \d+(/\d+)?  .*in \d+:\d\d:\d\d.*")
SKIPPED = re.compile(r"(?:skipped|failed|note|\w+ lacks|\w+: bad line)\b.*")
BIDIRECTIONAL = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Fault(NamedTuple):
    """Something that no input may cause."""

    kind: str  # its class, for counting
    text: str


def faults_of_run(run: Run, codes: Collection[int]) -> Iterator[Fault]:
    """Faults of a command that may end with one of `codes`, or with 2 and one line."""
    errors = run.stderr.decode(errors="replace")
    yield from _ending(run, errors, codes)
    if run.outside:
        yield Fault("changed outside --out", ", ".join(run.outside))
    for name, output in (("stdout", run.stdout), ("stderr", run.stderr)):
        yield from _unprintable(name, output)
    if run.code in (0, 1, 2) and "Traceback" not in errors:
        yield from _stray_lines(run, errors)


def _ending(run: Run, errors: str, codes: Collection[int]) -> Iterator[Fault]:
    if run.code is None or run.code == -signal.SIGXCPU:
        yield Fault("does not end", f"killed after {run.seconds:.0f} s")
    elif run.code < 0:
        yield Fault(f"killed by {signal.Signals(-run.code).name}", errors[-300:])
    elif "Traceback" in errors:
        yield Fault(f"traceback: {_place(errors)}", errors[-600:])
    elif run.code not in codes and run.code != 2:
        yield Fault(f"exit code {run.code}", errors[-300:])


def _place(errors: str) -> str:
    """The exception's type and the innermost of our functions."""
    own = re.findall(
        r'File ".*?/((?:ops|pipelines|tokenizer|prior)/\S+?)", line \d+, in (\w+)', errors
    )
    raised = re.findall(r"^(\w[\w.]*?)(?::.*)?$", errors, re.MULTILINE)
    where = " ".join(own[-1]) if own else "?"
    return f"{raised[-1] if raised else '?'} in {where}"


def _unprintable(name: str, output: bytes) -> Iterator[Fault]:
    try:
        text = output.decode()
    except UnicodeDecodeError as error:
        yield Fault(f"bytes that are not UTF-8 on {name}", str(error))
        return
    bad = {
        c
        for c in text
        if c != "\n" and (unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") or c in BIDIRECTIONAL)
    }
    if bad:
        yield Fault(f"control characters on {name}", f"{sorted(bad)!r} in {text[-300:]!r}")


def _stray_lines(run: Run, errors: str) -> Iterator[Fault]:
    """Lines on stderr that are neither progress nor the one error."""
    lines = [line for line in errors.splitlines() if line and not PROGRESS.fullmatch(line)]
    wanted = 0 if run.code == 0 or (run.code == 1 and not lines) else 1
    good = [line for line in lines if line.startswith("error: ")]
    if len(lines) != wanted or len(good) != wanted:
        yield Fault(f"{len(lines)} lines on stderr with exit code {run.code}", errors[-600:])


class Outcome(NamedTuple):
    """What an encode run says of its inputs."""

    rows: dict[str, str]  # key -> status
    named: str  # the lines about what was not encoded


def encode_outcome(run: Run, store: Path) -> Outcome:
    """The rows of a store's image track and the lines that name what is not in it."""
    rows = {}
    for part in sorted(store.glob("_index/*/*.parquet")):
        for line in pq.read_table(part, columns=["key", "status"]).to_pylist():
            rows[line["key"]] = line["status"]
    lines = run.stdout.decode(errors="replace").splitlines()
    return Outcome(rows, "\n".join(line for line in lines if SKIPPED.match(line)))


def faults_of_encode(
    run: Run, store: Path, fuzzed: str, members: Collection[str]
) -> Iterator[Fault]:
    """Faults of an encode run over good images and the input `fuzzed`.

    Every good image is encoded. `fuzzed`, and each of the images `members` that it certainly has,
    are in the index or named with a reason.
    """
    yield from faults_of_run(run, codes=(0,))
    if run.code == 2:
        yield Fault("one input stops all", run.stderr.decode(errors="replace")[-300:])
    if run.code != 0:
        return
    rows, named = encode_outcome(run, store)
    for name in GOOD:
        if rows.get(name) != "ok":
            yield Fault("a good image is not encoded", f"{name}: {rows.get(name)}")
    if not fuzzed or fuzzed in named:
        return
    if not any(key == fuzzed or key.startswith(f"{fuzzed}/") for key in rows):
        yield Fault("an input vanished", f"{fuzzed}: {sorted(rows)}")
    lost = sorted(name for name in members if f"{fuzzed}/{name}" not in rows)
    if lost:
        yield Fault("a member vanished", f"{lost} of {fuzzed}, which has {sorted(rows)}")
