"""What a command does with an error: one line for those a user can mend, a traceback for a fault of the package."""

from __future__ import annotations

import inspect

import pytest
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.cli.commands import verify
from solvers import errors
from solvers.errors import SdediffError


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> object:
    def work(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(verify, "verify_all", work)
    return CliRunner().invoke(app, ["verify", "ddim"])


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [
        (errors.InputError("no such\n  budget"), 2, False),
        (OSError(28, "No space left on device"), 2, False),
        (MemoryError("8 GiB"), 2, False),
        (KeyboardInterrupt(), 130, False),
        (ValueError("of a library"), 1, True),
        (TypeError("'NoneType' object is not subscriptable"), 1, True),
        (KeyError("x"), 1, True),
    ],
)
def test_exit_code_and_traceback(
    error: BaseException, code: int, traceback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = failing(monkeypatch, error)
    assert result.exit_code == code
    assert ("Traceback" in result.stderr, "please report it" in result.stderr) == (traceback, traceback)
    if not traceback:
        assert len(result.stderr.splitlines()) == 1


def test_each_class_is_also_the_builtin_of_its_kind() -> None:
    kinds = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, SdediffError)]
    assert len(kinds) == 8
    for kind in set(kinds) - {SdediffError}:
        builtin = kind.__mro__[2]
        assert builtin.__module__ == "builtins" and str(kind("a sentence")) == "a sentence"
