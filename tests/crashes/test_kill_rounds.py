"""kill -9 at random moments: whatever was hit, the finished store is the undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crashes.kill_rounds import run_rounds


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        ("driver", 3),
        pytest.param("driver", 30, marks=pytest.mark.slow),
        pytest.param("worker", 14, marks=[pytest.mark.slow, pytest.mark.ray]),
        pytest.param("raylet", 8, marks=[pytest.mark.slow, pytest.mark.ray]),
    ],
)
def test_killed_at_random_moments_it_resumes(tmp_path: Path, kind: str, rounds: int) -> None:
    assert run_rounds(kind, rounds, 1, tmp_path)
