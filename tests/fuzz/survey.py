"""Count the faults that many inputs cause: python -m tests.fuzz.survey --examples N [KIND ...].

Saves one input of each class of fault.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.kinds import KINDS, Unprinted, inputs_of, try_input
from tests.fuzz.sandbox import Server
from tests.fuzz.valid_inputs import ValidInputs


def survey(
    valid: ValidInputs, kind: str, examples: int, seconds: float, number: int, saved: Path
) -> tuple[int, int, Counter[str]]:
    """(inputs tried, inputs with a fault, faults by class) of one kind."""
    counts: Counter[str] = Counter()
    tried = faulty = 0
    end = time.monotonic() + seconds

    @seed(number)
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
    )
    @given(inputs_of(valid, kind))
    def run(given_input: Unprinted) -> None:
        nonlocal tried, faulty
        if time.monotonic() > end:
            raise TimeoutError
        trial = try_input(valid, kind, given_input)
        tried += 1
        faulty += bool(trial.faults)
        for fault in {fault.kind: fault for fault in trial.faults}.values():
            if fault.kind not in counts:
                name = re.sub(r"\W+", "-", f"{kind} {fault.kind}")[:100]
                folder = valid.sandbox.save(saved / name, trial.runs)
                (folder / "fault.txt").write_text(f"{fault.kind}\n{fault.text}\n")
            counts[fault.kind] += 1

    with contextlib.suppress(TimeoutError):
        run()
    return tried, faulty, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--examples", type=int, default=200, help="of each kind")
    parser.add_argument("--seconds", type=float, default=1e9, help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--saved", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-faults")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server()
        valid = ValidInputs(Path(folder), server)
        for kind in asked.kinds or KINDS:
            started = time.monotonic()
            found = survey(valid, kind, asked.examples, asked.seconds, asked.seed, asked.saved)
            tried, faulty, counts = found
            seconds = time.monotonic() - started
            sys.stdout.write(f"{kind}: {tried} inputs, {faulty} with a fault, {seconds:.0f} s\n")
            for fault, count in counts.most_common():
                sys.stdout.write(f"    {count:4} {fault}\n")
            sys.stdout.flush()
        server.close()


if __name__ == "__main__":
    main()
