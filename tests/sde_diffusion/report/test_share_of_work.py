"""A bar is shown where somebody looks, late enough that short runs show none, and never twice."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from sde_diffusion.report import share_of_work as bars
from sde_diffusion.report import terminal
from sde_diffusion.report.share_of_work import share_bar


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(force_terminal=True, width=80, file=io.StringIO(), _environ={"TERM": "xterm"})
    monkeypatch.setattr(terminal, "stderr", lambda: console)
    monkeypatch.setattr(bars, "_DELAY", 0.0)
    monkeypatch.setattr(bars, "_PAUSE", 0.0)
    return console


def test_a_terminal_shows_the_share_and_what_is_done(screen: Console) -> None:
    with share_bar(True, "sampling") as report:
        assert report is not None
        report(0.42, "tuning")
    assert "tuning" in screen.file.getvalue() and "42%" in screen.file.getvalue()


def test_a_short_run_shows_nothing(screen: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "_DELAY", 100.0)
    with share_bar(True, "sampling") as report:
        report(0.5)
    assert screen.file.getvalue() == ""


def test_a_bar_within_a_bar_is_not_shown(screen: Console) -> None:
    with share_bar(True, "outer") as outer:
        outer(0.1)
        with share_bar(True, "inner") as inner:
            assert inner is None
        outer(0.2)
    assert "outer" in screen.file.getvalue()
    with share_bar(True, "next") as report:
        assert report is not None


def test_a_pipe_and_false_show_nothing() -> None:
    with share_bar(True, "sampling") as report:  # stderr of a test is no terminal
        assert report is None
    with share_bar(False, "sampling") as report:
        assert report is None


def test_a_notebook_shows_html_below_the_cell(screen: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    fake = SimpleNamespace(HTML=str, display=lambda text, display_id: (shown.append(text), handle)[1])
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    screen.is_jupyter = True
    with share_bar(True, "<tuning>") as report:
        report(0.5)
        report(0.75)
    assert 'value="0.5000"' in shown[0] and "&lt;tuning&gt;, 50 %" in shown[0]
    assert 'value="0.7500"' in shown[1] and shown[-1] == ""
