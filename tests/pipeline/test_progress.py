from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.progress import Progress, Rate


def test_without_a_terminal_figures_are_lines_at_most_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(title="feed s") as shown:
        for order in range(5):
            shown.update(order=order * 1000, rate=1.25)
        shown.message("hello")
    assert capsys.readouterr().err.splitlines() == [
        "feed s  order 0  rate 1.2",
        "hello",
        "feed s  order 4,000  rate 1.2",
    ]


def test_figures_that_do_not_move_are_said_ever_more_rarely(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    said: list[int] = []
    with Progress(title="teach s") as shown:
        for now in range(1000):
            shown.update(orders=7, samples_per_s=now / 1e6)  # which is shown as 0.0
            said += [now] * bool(capsys.readouterr().err)
        assert said == [0, 20, 60, 140, 300, 620]
        for now in range(1000, 1030):
            shown.update(orders=max(8, now - 1010))
            said += [now] * bool(capsys.readouterr().err)
        assert said[6:] == [1000, 1019, 1029]  # at once, and after 10 s at the earliest what is new


def test_a_rate_is_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    rate = Rate()
    rates: list[float] = []
    for now in range(1, 400):
        rates.append(rate.of(10 * min(now, 200)))
    assert rates[:200] == [10.0] * 200
    assert rates[229] == pytest.approx(5.0)
    assert rates[260:] == [0.0] * 139


def test_a_figure_that_is_none_goes_away(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    with Progress() as shown:
        shown.update(order=1, waiting_for="credit")
        shown.update(waiting_for=None)
    assert capsys.readouterr().err.splitlines() == ["order 1  waiting for credit", "order 1"]


def test_no_figures_are_no_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    with Progress() as shown:
        shown.update(order=1)
        shown.update(order=None)
    assert capsys.readouterr().err.splitlines() == ["order 1"]


def test_what_ends_soon_shows_nothing_and_what_takes_long_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress(title="reading", after=2.0) as shown:
        shown.update(labels=1)
        now += 1.9
        shown.update(labels=2)
    assert capsys.readouterr().err == ""
    with Progress(title="reading", after=2.0) as shown:
        shown.update(labels=1)
        now += 2.0
        shown.update(labels=2)
        shown.update(labels=3)
    assert capsys.readouterr().err.splitlines() == ["reading  labels 2", "reading  labels 3"]


def test_inside_of_a_quiet_one_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True), Progress(title="reading") as shown:
        shown.update(labels=1)
    assert capsys.readouterr().err == ""
    with Progress(title="reading") as shown:
        shown.update(labels=1)
    assert capsys.readouterr().err == "reading  labels 1\n"


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as shown:
        shown.update(order=1)
        shown.message("hello")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_one_live_line_below_the_messages() -> None:
    file = io.StringIO()
    with Progress(Console(file=file, force_terminal=True, width=60), title="feed") as shown:
        shown.update(order=1)
        shown.message("hello [not markup]")
        shown.update(order=2)
    assert "hello [not markup]" in file.getvalue()
    assert "feed  order 2" in file.getvalue()


def test_a_table_stands_below_the_figures_on_a_terminal_and_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("worker", "on", "partitions"), ("w-1", "GPU 0", 1200), ("w-2", "GPU 1", None)]
    text = io.StringIO()
    for console in (Console(file=text, force_terminal=True, width=60), None):
        with Progress(console, title="fleet") as shown:
            shown.table(rows)
            shown.update(workers=2)
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    found = [
        next(i for i, line in enumerate(lines) if part in line)
        for part in ("fleet workers 2", "w-1 GPU 0 1,200", "w-2 GPU 1 -")
    ]
    assert found == sorted(found)
    assert capsys.readouterr().err.splitlines() == ["fleet  workers 2"]
