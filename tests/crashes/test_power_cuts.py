"""A power cut at any moment, in which whatever was not flushed may be lost or torn."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import verify
from tests.crashes.null_encode import NullScenario
from tests.crashes.post_crash_checks import EXTREMES, Recorded, record
from tests.crashes.power_cuts import TEARS, Moment
from tests.crashes.scenarios import Scenario

SCENARIOS = ("fresh", "extended", "tracked")
Cut = tuple[Moment, int, list[str]]


@pytest.fixture(scope="module")
def recorded(
    fresh: Scenario,
    extended: Scenario,
    tracked: Scenario,
    null_commands: tuple[NullScenario, NullScenario],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Recorded]:
    """Every moment of each scenario."""
    folder = tmp_path_factory.mktemp("recorded")
    commands = {"fresh": fresh, "extended": extended, "tracked": tracked}
    commands |= {"null fresh": null_commands[0], "null extended": null_commands[1]}
    return {name: record(command, folder / name) for name, command in commands.items()}


@st.composite
def cuts(draw: st.DrawFn, moments: list[Moment]) -> Cut:
    moment = draw(st.sampled_from(moments))
    kept = draw(st.integers(0, 2 ** len(moment.pending) - 1))
    size = max(1, len(moment.written))
    tears = draw(st.lists(st.sampled_from(TEARS), min_size=size, max_size=size))
    return moment, kept, tears


def check_drawn_cuts(recorded: Recorded, folder: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cut=cuts(recorded.moments))
    def check(cut: Cut) -> None:
        assert not recorded.harm(recorded.cut(folder, *cut)), cut[0].about_to

    check()


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("fresh", 3),
        ("extended", 3),
        ("tracked", 3),
        ("null fresh", 20),
        ("null extended", 20),
        pytest.param("fresh", 500, marks=pytest.mark.slow),
        pytest.param("extended", 500, marks=pytest.mark.slow),
        pytest.param("tracked", 500, marks=pytest.mark.slow),
        pytest.param("null fresh", 3000, marks=pytest.mark.slow),
        pytest.param("null extended", 3000, marks=pytest.mark.slow),
    ],
)
def test_rerun_after_a_power_cut_gives_the_same_bytes(
    recorded: dict[str, Recorded], name: str, examples: int, tmp_path: Path
) -> None:
    check_drawn_cuts(recorded[name], tmp_path / "cut", examples)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fresh", "extended", "tracked", "null fresh", "null extended"])
def test_a_power_cut_at_any_moment_does_no_harm(
    recorded: dict[str, Recorded], name: str, tmp_path: Path
) -> None:
    assert not list(recorded[name].harms(tmp_path / "cut"))


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("kept", "tear"), EXTREMES)
def test_finished_store_needs_no_recovery_after_a_power_cut(
    recorded: dict[str, Recorded], name: str, kept: int, tear: str, tmp_path: Path
) -> None:
    one = recorded[name]
    store = one.cut(tmp_path / "cut", one.moments[-1], kept, [tear])
    assert not one.loss(store)
    assert verify.main([str(store)]) == 0
