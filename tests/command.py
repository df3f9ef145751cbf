"""A command of `sdediff` in this process: its result, its output, or the error that it ends with."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from sde_diffusion.cli import app


def invoke(*words: object) -> Result:
    """The result of a command, given as one line or word by word."""
    line = str(words[0]).split() if len(words) == 1 else [str(word) for word in words]
    return CliRunner().invoke(app, line)


def run(*words: object) -> str:
    """The standard output of a command that succeeds."""
    result = invoke(*words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout


def refused(*words: object) -> str:
    """The error message of a command that refuses its arguments: one line, the last."""
    result = invoke(*words)
    assert result.exit_code == 2, (words, result.output, result.exception)
    lines = result.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True], result.stderr
    return lines[-1]
