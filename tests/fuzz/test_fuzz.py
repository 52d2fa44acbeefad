"""Whatever the input: all of it, skipped with a reason, or one line and exit code 2.

SMALTI_FUZZ_EXAMPLES=1000 sets the number of inputs of each kind in the long run (-m slow), which
tries others every time; the short one tries the same every time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given

from tests.fuzz.kinds import KINDS, Trial, Unprinted, inputs_of, try_input
from tests.fuzz.valid_inputs import ValidInputs

#: Inputs of each kind in the short run; most of the kinds in which most faults were found.
EXAMPLES = dict.fromkeys(KINDS, 4) | {"tar": 9, "parquet": 7, "image": 6, "store": 9, "run": 3}
LONG = int(os.environ.get("SMALTI_FUZZ_EXAMPLES", "300"))


def check_kind(valid: ValidInputs, kind: str, saved: Path, **settings: Any) -> None:
    """Try inputs until one causes a fault; then fail with the smallest such input, saved."""

    @hypothesis.settings(
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        **settings,
    )
    @given(inputs_of(valid, kind))
    def check(given_input: Unprinted) -> None:
        trial = try_input(valid, kind, given_input)
        if trial.faults:
            pytest.fail(report(valid, kind, trial, saved), pytrace=False)

    check()


def report(valid: ValidInputs, kind: str, trial: Trial, saved: Path) -> str:
    """What went wrong and how to see it again; saves the input."""
    folder = valid.sandbox.save(saved / re.sub(r"\W+", "-", kind), trial.runs)
    faults = "\n".join(f"{fault.kind}: {fault.text}" for fault in trial.faults)
    commands = "\n".join(run.command for run in trial.runs)
    return f"{faults}\nTo see it again:\ncd {folder}/sandbox && rm -rf out\n{commands}"


@pytest.mark.parametrize("kind", KINDS)
def test_odd_input_is_done_skipped_or_refused(kind: str, valid: ValidInputs, saved: Path) -> None:
    check_kind(valid, kind, saved, max_examples=EXAMPLES[kind], derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_other_odd_inputs_are_done_skipped_or_refused(
    kind: str, valid: ValidInputs, saved: Path
) -> None:
    check_kind(valid, kind, saved, max_examples=LONG, derandomize=False)
