"""What people see in a terminal: whole words and commands, warnings above bars, examples as they were written."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from sde_diffusion.cli import SUMMARIES, app
from sde_diffusion.report import share_of_work as bars
from sde_diffusion.report import terminal

COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def console(width: int) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=width, color_system=None, _environ={}), file


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("command", [None, *SUMMARIES])
def test_examples_stand_in_the_help_as_they_were_written(
    command: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = typer.main.get_command(app).help if command is None else COMMANDS[command].epilog
    shown = CliRunner().invoke(app, [*filter(None, [command]), "--help"]).stdout
    lines = {line.strip() for line in shown.splitlines()}
    for line in (text or "").splitlines():
        if line.startswith("sdediff "):
            assert line in lines


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lines_break_between_words_and_commands_do_not_break(width: int) -> None:
    words = "mean -0.3885, std 0.7522, 1,797 samples of digits, 95 % intervals of the difference; " * 3
    command = "sdediff train --resume --out runs/" + "a-long-name-" * 4
    out, file = console(width)
    terminal.echo(words.strip(), command, console=out)
    *lines, last = file.getvalue().splitlines()
    assert last == command
    assert max(map(len, lines)) <= width and " ".join(" ".join(lines).split()) == words.strip()
    out, file = console(width)
    terminal.echo("next:", "sdediff sample", console=out)
    assert file.getvalue() == "next: sdediff sample\n"
    path = "runs/" + "x" * 150 + "/samples.png"
    terminal.echo(f"picture {path}", console=out)
    assert path in file.getvalue()


def test_a_pipe_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.echo("word " * 60 + "end;", "sdediff sample")
    assert capsys.readouterr().out == "word " * 60 + "end; sdediff sample\n"
    terminal.echo("red \x1b[31m and [bold]brackets[/bold]")
    assert capsys.readouterr().out == "red \\x1b[31m and [bold]brackets[/bold]\n"


def test_a_warning_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out, file = console(80)
    monkeypatch.setattr(terminal, "stderr", lambda: out)
    monkeypatch.setattr(bars, "_DELAY", 0.0)
    monkeypatch.setattr(bars, "_PAUSE", 0.0)
    with bars.share_bar(True, "sampling") as progress:
        assert progress is not None
        progress(0.25)
        terminal.say("warning: frechet: 300 samples in 64 dimensions are few, 640 or more say something more", "yellow")
        progress(0.5)
    lines = [line for part in file.getvalue().split("\n") for line in ESCAPES.sub("", part).split("\r") if line.strip()]
    assert any("sampling" in line for line in lines)
    warned = [line for line in lines if "warning" in line or "something" in line]
    assert len(warned) == 2 and not any("sampling" in line or "%" in line for line in warned)


def test_stderr_has_one_console() -> None:
    assert terminal.stderr() is terminal.stderr() and terminal.stderr().stderr
