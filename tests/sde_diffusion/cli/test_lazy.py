"""What needs no numerics starts without torch: the overview, the versions, the table of solvers, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import sde_diffusion
from sde_diffusion import public
from sde_diffusion.cli import SUMMARIES, app
from sde_diffusion.cli.commands.solvers import LISTING
from sde_diffusion.report.solver_table import table_of_solvers
from sde_diffusion.verify.declarations import listing
from solvers import SOLVERS

ROOT = Path(sde_diffusion.__file__).parent.parent
HEAVY = ("torch", "numpy", "scipy", "solvers", "matplotlib", "sklearn", "sde_diffusion.networks")


def imported(*args: str, **environment: str) -> tuple[str, set[str]]:
    """What a command prints, and which heavy modules it has imported at its end."""
    code = f"""
import sys
from sde_diffusion.cli import app
try:
    app({list(args)!r}, prog_name="sdediff")
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    shown, names = done.stdout.rsplit("imported:", 1)
    return shown, set(names.split())


@pytest.mark.parametrize(
    ("args", "word"),
    [((), "likelihood"), (("--help",), "likelihood"), (("--version",), "torch "), (("solvers",), "dpm++2m")],
)
def test_commands_that_need_no_numerics_import_none(args: tuple[str, ...], word: str) -> None:
    shown, names = imported(*(args or ("--help",)))
    assert word in shown and names == set()


def test_a_command_that_needs_them_does() -> None:
    assert imported("train", "--help")[1] >= {"torch", "solvers"}


def test_names_of_commands_are_completed_without_them() -> None:
    code = "from sde_diffusion.cli import app; import sys; app(prog_name='sdediff')"
    environment = {"_SDEDIFF_COMPLETE": "complete_bash", "COMP_WORDS": "sdediff s", "COMP_CWORD": "1"}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], env=env, capture_output=True, text=True)
    assert {"sample", "solvers"} <= set(done.stdout.split())
    assert " torch\n" not in done.stderr and " typer\n" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sdediff sample --solver dpm++2m", {"dpm++2m", "dpm++2m-sde"}),
        ("sdediff compare --solvers pf-ode,uni", {"pf-ode,unipc"}),
        ("sdediff evaluate --solver heu", {"heun"}),
        ("sdediff train --sde v", {"vp", "ve"}),
    ],
)
def test_values_are_completed(words: str, expected: set[str]) -> None:
    environment = {"_SDEDIFF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shown = CliRunner().invoke(app, [], prog_name="sdediff", env=environment).stdout
    assert set(shown.split()) == expected


def test_the_overview_has_the_first_sentence_of_each_command() -> None:
    commands: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert list(commands) == list(SUMMARIES)
    for name, text in SUMMARIES.items():
        assert commands[name].help.split("\n\n")[0] == text


def test_the_listing_is_what_the_solvers_declare() -> None:
    hint = "write sde_diffusion.verify.declarations.listing() into sde_diffusion/cli/commands/solvers.json"
    assert LISTING.read_text() == listing(), hint
    assert json.loads(CliRunner().invoke(app, ["solvers", "--json"]).stdout) == json.loads(listing())


@pytest.mark.parametrize("width", [80, 100, 120, 170])
def test_no_fact_of_a_solver_is_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = CliRunner().invoke(app, ["solvers"]).stdout.splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    declared = json.loads(listing())
    for name, said in declared.items():
        line = next(line for line in lines if line.split()[:1] == [name])
        assert " ".join(said["evaluations"].split()) in " ".join(line.split()) and said["grid"] in line
    if width >= 120:
        words = " ".join(" ".join(lines).split())
        assert all(said["source"].split()[0] in words for said in declared.values())


def test_a_longer_name_than_the_terminal_is_not_cut_either() -> None:
    said = {**json.loads(listing())["ddim"], "evaluations": "N " + "+ 1 " * 30}
    table = table_of_solvers({"x" * 60: said}, 80)
    assert [column.min_width for column in table.columns[:1]] == [60]


def test_every_public_name_is_that_of_its_module() -> None:
    assert set(sde_diffusion.__all__) == {
        name for name, value in vars(public).items() if not name.startswith("_") and name != "annotations"
    }
    for name in sde_diffusion.__all__:
        assert getattr(sde_diffusion, name) is getattr(public, name)
    assert set(dir(sde_diffusion)) >= set(sde_diffusion.__all__)
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = sde_diffusion.smaple
    assert "pf-ode" in SOLVERS
