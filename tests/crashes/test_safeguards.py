"""Without each safeguard a crash test fails, so the crash tests can fail."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import verify
from pipelines.encoding.batches import BatchEncoder, Reading
from pipelines.store import CodeStore, StoreError, integrity, task_buffer
from pipelines.store.mapping import ShardFiles
from pipelines.tracks import encode_store
from tests.crashes.disk_doubles import Step, StoppingDisk
from tests.crashes.encode_processes import exit_code, start, start_encode, wait_until_stopped
from tests.crashes.mutants import (
    LinkingFirst,
    OverwritingDisk,
    encode_without_lock,
    never_flushing,
    run_task_with_one_name,
)
from tests.crashes.null_encode import NullScenario
from tests.crashes.post_crash_checks import record, shown
from tests.crashes.scenarios import Scenario
from tests.crashes.zombies import ZombieTrial
from tokenizer import VQGAN

# --- against power cuts

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("scenario", "kind", "before"),
    [
        # `before`: a step at which a cut harms, where it does not at the end, always tested.
        ("fresh", "temporary staged shard", None),
        ("fresh", "staging folder", "fsync index folder"),
        ("fresh", "index folder", None),
        ("fresh", "staged part", None),
        pytest.param("fresh", "folder of index folders", None, marks=slow),
        pytest.param("fresh", "shard folder", None, marks=slow),
        pytest.param("fresh", "array folder", None, marks=slow),
        pytest.param("fresh", "temporary plan part", None, marks=slow),
        pytest.param("fresh", "plan folder", None, marks=slow),
        pytest.param("fresh", "temporary metadata", None, marks=slow),
        pytest.param("fresh", "tokenizer", None, marks=slow),
        pytest.param("fresh", "store folder", None, marks=slow),
        pytest.param("fresh", "outside", None, marks=slow),
        pytest.param("extended", "temporary tombstone part", None, marks=slow),
        pytest.param("extended", "tombstone folder", None, marks=slow),
        pytest.param("extended", "temporary checksums", None, marks=slow),
    ],
)
def test_without_a_flush_a_power_cut_does_harm(
    null_commands: tuple[NullScenario, NullScenario],
    scenario: str,
    kind: str,
    before: str | None,
    tmp_path: Path,
) -> None:
    command = null_commands[scenario == "extended"]
    recorded = record(command, tmp_path / "recorded", never_flushing(kind))
    assert next(recorded.harms(tmp_path / "cut", before or "end"), None)


def test_linking_a_part_before_its_shard_makes_a_power_cut_do_harm(
    null_commands: tuple[NullScenario, NullScenario], tmp_path: Path
) -> None:
    recorded = record(null_commands[0], tmp_path / "recorded", LinkingFirst)
    assert next(recorded.harms(tmp_path / "cut", "fsync index folder"), None)


@pytest.mark.parametrize(
    ("step", "before"),
    [
        ("remove_partials", "replace metadata"),
        ("publish_committed", "replace shard"),
    ],
)
def test_without_a_step_of_recovery_a_power_cut_does_harm(
    null_commands: tuple[NullScenario, NullScenario],
    step: str,
    before: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = record(null_commands[0], tmp_path / "recorded")
    monkeypatch.setattr(encode_store, step, lambda root: None)
    assert next(recorded.harms(tmp_path / "cut", before), None)


@slow
def test_with_every_safeguard_a_power_cut_at_those_moments_does_no_harm(
    null_commands: tuple[NullScenario, NullScenario], tmp_path: Path
) -> None:
    recorded = record(null_commands[0], tmp_path / "recorded")
    for before in ("fsync index folder", "replace metadata", "replace shard", "link part"):
        assert not list(recorded.harms(tmp_path / "cut", before))


# --- against zombies


def test_overwriting_links_let_a_zombie_change_the_store(
    zombie_trial: ZombieTrial, tmp_path: Path
) -> None:
    assert zombie_trial.trouble(
        tmp_path / "codes.zarr",
        Step("link part"),
        shift=1,
        whole=False,
        make_disk=OverwritingDisk,
    )


def test_shard_names_without_a_hash_let_a_zombie_change_the_store(
    zombie_trial: ZombieTrial, tmp_path: Path
) -> None:
    assert zombie_trial.trouble(
        tmp_path / "codes.zarr",
        Step("replace staged shard"),
        shift=1,
        whole=False,
        attempt=run_task_with_one_name,
    )


def test_without_the_lock_two_drivers_run_at_once(fresh: Scenario, tmp_path: Path) -> None:
    out = fresh.prepare(tmp_path / "codes.zarr")
    driver = start_encode(fresh.words(out), StoppingDisk(out, Step("link part")))
    assert wait_until_stopped(driver)
    second = exit_code(start(encode_without_lock, fresh.words(out)))
    os.kill(driver.pid or 0, signal.SIGCONT)
    assert (second, exit_code(driver)) != (2, 0)


# --- in reading and encoding


def test_a_short_shard_is_refused_only_because_its_size_is_checked(
    fresh: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "codes.zarr"
    fresh.prepare(out)
    assert fresh.run(out) == 0
    shard = next(out.glob("g*/image/c/0/0/0"))
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(StoreError, match="expected"):
        CodeStore.open(out)
    monkeypatch.setattr(ShardFiles, "_find", lambda self, address: shard)
    CodeStore.open(out)


def test_verify_names_rows_only_because_each_has_a_checksum(
    fresh: Scenario,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def report_of_a_flipped_bit(out: Path) -> str:
        assert fresh.run_here(fresh.prepare(out)) == 0
        shard = next(out.glob("g*/image/c/0/0/0"))
        data = bytearray(shard.read_bytes())
        data[0] ^= 1
        shard.write_bytes(data)
        capsys.readouterr()
        assert verify.main([str(out)]) == 1
        return capsys.readouterr().out

    assert "row 0" in report_of_a_flipped_bit(tmp_path / "codes.zarr")
    for module in (task_buffer, integrity):
        monkeypatch.setattr(module, "row_checksums", lambda codes: [0] * len(codes))
    assert "row 0" not in report_of_a_flipped_bit(tmp_path / "unchecked.zarr")


def test_codes_do_not_depend_on_neighbours_only_because_batches_are_padded(
    fresh: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, read = VQGAN.encode, BatchEncoder.read

    def size_dependent(self: VQGAN, pixels: torch.Tensor, **_: bool) -> torch.Tensor:
        return (right(self, pixels) + len(pixels)) % self.config.codebook_size

    def read_without_padding(self: BatchEncoder, *arguments: object) -> Reading:
        images, lines = read(self, *arguments)
        for line in lines.values():
            line.result()
        return Reading(images[list(lines)] if lines else images, lines)

    def differ(folder: Path) -> bool:
        """Whether the first image's codes differ when it is encoded alone."""
        folder.mkdir()
        alone = replace(fresh, images=next(fresh.images.glob("*.png")))
        assert alone.run_here(folder / "alone.zarr") == fresh.run_here(folder / "all.zarr") == 0
        codes = shown(folder / "alone.zarr")
        return any(shown(folder / "all.zarr")[image] != codes[image] for image in codes)

    monkeypatch.setattr(VQGAN, "encode", size_dependent)
    assert not differ(tmp_path / "padded")
    monkeypatch.setattr(BatchEncoder, "read", read_without_padding)
    assert differ(tmp_path / "not padded")
