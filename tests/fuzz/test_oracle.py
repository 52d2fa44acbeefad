"""The server bounds what commands may take, and the oracle sees what they may not do."""

from __future__ import annotations

import pytest

from tests.fuzz.oracle import faults_of_run
from tests.fuzz.valid_inputs import ValidInputs

ODD = {
    "allocate": "traceback: MemoryError",
    "fill the disk": "traceback: OSError",
    "write outside": "changed outside --out",
    "remove outside": "changed outside --out",
    "die": "killed by SIGABRT",
    "escape": "control characters on stdout",
    "turn": "control characters on stderr",
    "two lines": "2 lines on stderr",
    "no line": "0 lines on stderr",
    "other code": "exit code 3",
    "refuse": None,
    "work": None,
}


@pytest.mark.parametrize("what", ODD)
def test_oracle_sees_what_a_command_may_not_do(what: str, valid: ValidInputs) -> None:
    valid.sandbox.reset()
    run = valid.sandbox.run("tests.fuzz.odd_commands", what)
    found = [fault.kind for fault in faults_of_run(run, codes=(0,))]
    expected = ODD[what]
    assert found == [] if expected is None else found[0].startswith(expected), found
