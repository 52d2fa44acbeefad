"""SIGKILL of encode while it writes to an object store: the next run ends with the same objects."""

from __future__ import annotations

from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

from ops import paths
from ops.paths import ObjectPath
from tests.crashes.encode_processes import exit_code, start
from tests.crashes.null_encode import NullScenario, encode_files, null_scenarios
from tests.object_servers import S3, proxy


def encode_into(options: dict[str, str], out: ObjectPath, scenario: NullScenario) -> int:
    with paths.storage_options(options):
        return encode_files(out, scenario.tokenizer, scenario.files)


def run_until(last: int, s3: S3, out: ObjectPath, scenario: NullScenario) -> int:
    """Run encode in a child that is killed at a number of requests; its exit code."""
    requests, running = count(), list[BaseProcess]()

    def kill_at_last(*_: str) -> str:
        if next(requests) == last:
            running[0].kill()
        return ""

    with proxy(s3, kill_at_last) as before:
        running.append(start(encode_into, before.options, out, scenario))
        return exit_code(running[0])


def test_killed_runs_are_resumed_to_the_same_objects(s3: S3, tmp_path: Path) -> None:
    scenario = null_scenarios(tmp_path / "null")[0]
    for last in (35, 70):  # of some 150 requests
        out = s3.bucket() / "codes.zarr"
        assert run_until(last, s3, out, scenario) == -9
        unfinished = s3.objects(out)
        assert "_checksums.json" not in unfinished
        assert "_staging/driver.lock" in unfinished
        assert encode_into(s3.options, out, scenario) == 0
        found = s3.objects(out)
        found["_staging/driver.lock"] = b""  # on a disk the file of the lock stays
        assert found == scenario.uninterrupted
