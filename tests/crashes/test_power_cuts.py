"""A power cut at any moment: what was flushed is there, what was not may be lost or torn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import encode, verify
from pipelines.store import CodeStore, StoreError
from tests.crashes.disk_doubles import installed
from tests.crashes.power_cuts import TEARS, Moment, RecordingDisk
from tests.crashes.scenes import Scene

Codes = dict[str, bytes]  # by key
SCENES = ("fresh", "extended")


def shown(store: Path) -> Codes:
    """What a reader shows: the codes of every key."""
    return {row["key"]: row["codes"].tobytes() for row in CodeStore.open(store)}


class Recorded(NamedTuple):
    """A run of a scene's command with every moment of it; the last one is after its end."""

    scene: Scene
    moments: list[Moment]
    before: Codes  # what the reader showed before the run
    after: Codes

    def cut(self, folder: Path, moment: Moment, kept: int, tears: list[str]) -> Path:
        """The store in a fresh `folder` after a cut; bit i of `kept` is for pending name i."""
        shutil.rmtree(folder, ignore_errors=True)
        moment.rebuild(folder, lambda i: bool(kept >> i & 1), lambda i: tears[i % len(tears)])
        return folder / "codes.zarr"

    def harm(self, store: Path) -> str:
        """What a cut did to a store for good; "" when nothing. It is run to its end here."""
        if self.before:  # there was a store: it is never unreadable
            found = shown(store)
        else:
            try:
                found = shown(store)
            except StoreError:
                found = {}
        hidden = self.before.keys() & self.after.keys() - found.keys()
        wrong = [
            key for key in found if found[key] not in (self.before.get(key), self.after.get(key))
        ]
        if hidden or wrong:
            return f"before recovery: hidden {hidden}, wrong {wrong}"
        if code := self.scene.run(store):
            return f"recovery ended with exit code {code}"
        names = self.scene.differing(store)
        return f"recovered, but differs in {names}" if names else ""


def record(scene: Scene, top: Path) -> Recorded:
    """Run the scene's command in this process, in a new folder `top`."""
    top.mkdir()
    out = scene.prepare(top / "codes.zarr")
    with installed(RecordingDisk(top, out)) as disk:
        assert isinstance(disk, RecordingDisk)
        assert encode.main(scene.words(out)) == 0
        disk.record("end")
        disk.close()
    return Recorded(scene, disk.moments, shown(scene.base) if scene.base else {}, shown(out))


@pytest.fixture(scope="module")
def recorded(
    fresh: Scene, extended: Scene, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Recorded]:
    folder = tmp_path_factory.mktemp("recorded")
    scenes = {"fresh": fresh, "extended": extended}
    return {name: record(scene, folder / name) for name, scene in scenes.items()}


@st.composite
def cuts(draw: st.DrawFn, moments: list[Moment]) -> tuple[Moment, int, list[str]]:
    moment = draw(st.sampled_from(moments))
    kept = draw(st.integers(0, 2 ** len(moment.pending) - 1))
    size = max(1, len(moment.written))
    tears = draw(st.lists(st.sampled_from(TEARS), min_size=size, max_size=size))
    return moment, kept, tears


def check_drawn_cuts(recorded: Recorded, folder: Path, examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(cut=cuts(recorded.moments))
    def check(cut: tuple[Moment, int, list[str]]) -> None:
        store = recorded.cut(folder, *cut)
        assert not recorded.harm(store), cut[0].about_to

    check()


@pytest.mark.parametrize("name", SCENES)
def test_after_a_power_cut_the_same_command_gives_the_same_bytes(
    recorded: dict[str, Recorded], name: str, tmp_path: Path
) -> None:
    check_drawn_cuts(recorded[name], tmp_path / "cut", 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_after_a_thousand_power_cuts_too(
    recorded: dict[str, Recorded], name: str, tmp_path: Path
) -> None:
    check_drawn_cuts(recorded[name], tmp_path / "cut", 1000)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, -1])
@pytest.mark.parametrize("tear", TEARS)
@pytest.mark.parametrize("name", SCENES)
def test_after_a_power_cut_at_every_moment_too(
    recorded: dict[str, Recorded], name: str, tear: str, kept: int, tmp_path: Path
) -> None:
    one = recorded[name]
    harms = {
        f"{number} {moment.about_to}": one.harm(one.cut(tmp_path / "cut", moment, kept, [tear]))
        for number, moment in enumerate(one.moments)
    }
    assert not {moment: harm for moment, harm in harms.items() if harm}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(("kept", "tear"), [(0, "lost"), (-1, "zeros"), (-1, "short")])
def test_what_encode_reported_as_done_needs_no_recovery(
    recorded: dict[str, Recorded], name: str, kept: int, tear: str, tmp_path: Path
) -> None:
    one = recorded[name]
    store = one.cut(tmp_path / "cut", one.moments[-1], kept, [tear])
    assert shown(store) == one.after
    assert verify.main([str(store)]) == 0
