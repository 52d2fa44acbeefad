"""Progress as lines in a log file and as a bar on a terminal."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable

import pytest

from pipelines.console import progress
from pipelines.console.progress import LogProgress, progress_bar, rate_text


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().err.splitlines()


def test_log_has_a_line_every_ten_seconds_and_one_at_the_end(
    clock: Clock, lines: Callable[[], list[str]]
) -> None:
    with progress_bar("image") as bar:
        job = bar.add_task("encoding", total=10_000, note="", bad=0)
        for done in range(1, 14):
            clock.now += 2.5
            bar.update(job, completed=300 * done, bad=done // 4)
        assert lines() == [
            "encoding 1,200/10,000  120.0 images/s  1 bad  0:01:13 left",
            "encoding 2,400/10,000  120.0 images/s  2 bad  0:01:03 left",
            "encoding 3,600/10,000  120.0 images/s  3 bad  0:00:53 left",
        ]
    assert lines() == ["encoding 3,900/10,000  120.0 images/s  3 bad  in 0:00:32"]


def test_rate_is_that_of_the_last_minute(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with progress_bar("step") as bar:
        job = bar.add_task("train", total=2000, note="")
        for _ in range(20):
            clock.now += 10
            bar.advance(job, 10)
        for _ in range(6):
            clock.now += 10
            bar.advance(job, 100)
        assert lines()[-1] == "train 800/2,000  10.0 steps/s  0:02:00 left"
    assert lines() == ["train 800/2,000  3.1 steps/s  in 0:04:20"]


def test_work_completed_before_does_not_count_for_the_rate(
    clock: Clock, lines: Callable[[], list[str]]
) -> None:
    with progress_bar("step") as bar:
        job = bar.add_task("train", total=100, completed=90, note="")
        clock.now += 20
        bar.update(job, advance=1, note="loss 1.25")
    assert lines() == [
        "train 91/100  20.0 s/step  0:03:00 left  loss 1.25",
        "train 91/100  20.0 s/step  in 0:00:20  loss 1.25",
    ]


def test_job_without_progress_shows_no_time_left(
    clock: Clock, lines: Callable[[], list[str]]
) -> None:
    with progress_bar("code") as bar:
        job = bar.add_task("sampling", total=5, note="")
        clock.now += 11
        bar.update(job, completed=0)
        assert lines() == ["sampling 0/5"]


def test_rates_are_readable_at_any_speed() -> None:
    assert rate_text(12345.67, "image") == "12,345.7 images/s"
    assert rate_text(0.25, "step") == "4.0 s/step"
    assert rate_text(None, "step") == rate_text(0.0, "step") == ""


def test_advances_of_all_threads_count(lines: Callable[[], list[str]]) -> None:
    bar = LogProgress("image")
    job = bar.add_task("encoding", total=4000)
    threads = [
        threading.Thread(target=lambda: [bar.advance(job) for _ in range(1000)])  # type: ignore[misc]
        for _ in range(4)
    ]
    with bar:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (line,) = lines()
    assert line.startswith("encoding 4,000/4,000  ")


def test_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("image") as bar:
        job = bar.add_task("encoding", total=8, note="nearly there", bad=0)
        bar.update(job, completed=5, bad=2)
        other = bar.add_task("reading", total=1, note="")
        bar.advance(other)
    shown = terminal.getvalue()
    assert "5/8" in shown
    assert "2 bad" in shown
    assert "nearly there" in shown
