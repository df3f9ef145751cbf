from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import sde_diffusion
from sde_diffusion.cli import app
from sde_diffusion.data import NAMES
from sde_diffusion.models.score_model import PREDICTS
from sde_diffusion.sde import SDES
from sde_diffusion.training.loss_weights import LOSS_WEIGHTS
from solvers import GRIDS, SOLVERS

PROGRAM: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = PROGRAM.commands
SHARED = {"--out", "--seed", "--device", "--batch-size", "--steps"}


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("train", [*SDES, *PREDICTS, *LOSS_WEIGHTS, *NAMES]),
        ("sample", [*SOLVERS, *GRIDS]),
    ],
)
def test_the_choices_are_those_of_the_tables(command: str, names: list[str]) -> None:
    words = set(re.findall(r"[\w+-]+", help_of(command)))
    assert set(names) <= words


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_option_says_what_it_means(command: str) -> None:
    shown = help_of(command)
    for parameter in COMMANDS[command].params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name}"
        if getattr(parameter, "hidden", False):  # a former name
            continue
        for name in parameter.opts:
            assert not name.startswith("-") or name in shown


def test_the_overview_names_every_command() -> None:
    shown = help_of()
    assert {"train", "sample", "inspect"} <= set(COMMANDS)
    assert all(f" {name} " in shown for name in COMMANDS)
    assert all(COMMANDS[c].get_short_help_str(200)[:30] in shown for c in COMMANDS)


def test_options_of_several_commands_have_one_name() -> None:
    for command in ("train", "sample"):
        names = {name for parameter in COMMANDS[command].params for name in parameter.opts}
        assert names >= SHARED


EXAMPLES = [
    line.split("   ")[0].split(" > ")[0].strip()
    for text in (PROGRAM.help, *(command.epilog or "" for command in COMMANDS.values()))
    for line in text.splitlines()
    if line.startswith("sdediff ")
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_examples_are_commands_that_exist(line: str) -> None:
    name, *args = shlex.split(line)[1:]
    assert COMMANDS[name].make_context(name, args).params  # refuses unknown options and bad values


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_commands_of_this_file_end_with_examples(command: str) -> None:
    if command in ("train", "sample", "inspect"):
        assert len([e for e in EXAMPLES if e.startswith(f"sdediff {command}")]) >= 3


def test_a_misspelt_command_is_suggested() -> None:
    result = CliRunner().invoke(app, ["smaple"])
    assert result.exit_code == 2 and "sample" in result.stderr


def test_the_module_is_the_same_program() -> None:
    command = [sys.executable, "-m", "sde_diffusion", "--version"]
    env = {**os.environ, "PYTHONPATH": str(Path(sde_diffusion.__file__).parent.parent)}
    shown = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert shown == CliRunner().invoke(app, ["--version"]).output
    assert re.fullmatch(r"sdediff \S+, torch \S+\n", shown)
