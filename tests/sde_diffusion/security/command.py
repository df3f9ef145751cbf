"""A command in this process, and the message that it refuses a file or option with."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from sde_diffusion.cli import app

MODEL = "bundled"


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(*args: object) -> str:
    """The error message of a command."""
    result = run(*args)
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]
