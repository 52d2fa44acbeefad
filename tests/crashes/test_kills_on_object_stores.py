"""SIGKILL of encode while it writes to an object store: the next run ends with the same objects."""

from __future__ import annotations

import time
from pathlib import Path

from ops import paths
from ops.paths import ObjectPath
from tests.crashes.encode_processes import exit_code, start
from tests.crashes.null_encode import NullScenario, encode_files, null_scenarios
from tests.object_servers import S3

ROUNDS = 3


def encode_into(options: dict[str, str], out: ObjectPath, scenario: NullScenario) -> int:
    with paths.storage_options(options):
        return encode_files(out, scenario.tokenizer, scenario.files)  # type: ignore[arg-type]


def test_killed_runs_are_resumed_to_the_same_objects(s3: S3, tmp_path: Path) -> None:
    scenario = null_scenarios(tmp_path / "null")[0]
    out = s3.bucket() / "codes.zarr"
    began = time.monotonic()
    assert exit_code(start(encode_into, s3.options, out, scenario)) == 0
    whole = time.monotonic() - began
    for part in range(1, ROUNDS + 1):
        out = s3.bucket() / "codes.zarr"
        process = start(encode_into, s3.options, out, scenario)
        time.sleep(whole * part / (ROUNDS + 1))
        process.kill()
        process.join()
        assert exit_code(start(encode_into, s3.options, out, scenario)) == 0
        found = s3.objects(out)
        found["_staging/driver.lock"] = b""  # on a disk the lock's file stays
        assert found == scenario.uninterrupted
