"""One page of the site for each command, written from the program itself: ``python docs/command_pages.py --write``.

A page has the help text, the examples, a picture where the command makes one, and a table of arguments and options.
``tests/test_command_pages.py`` fails while a page differs from the program.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import typer.main

from sde_diffusion.cli import SUMMARIES, app

FOLDER = Path(__file__).parent / "commands"
# Pictures that a command makes, beside their text.
PICTURES = {
    "sample": ("digits.png", "Digits sampled with pf-ode at 20 evaluations"),
    "train": ("training-page.png", "The page of a run: samples on the way, loss and held-out loss"),
    "restore": ("restore-inpaint.png", "Hidden pixels, samples of the posterior, mean and deviation"),
    "show": ("solvers.png", "Solvers side by side from the same initial noise"),
    "compare": ("compare.png", "Error against NFE of several solvers"),
    "app": ("app.png", "The app with samples of the bundled digits"),
    "evaluate": ("evaluate.png", "Distance to the data against NFE, with standard errors"),
    "likelihood": ("elbo.png", "Terms of the variational bound over time"),
    "inspect": ("inspect.png", "Samples of a data set"),
}
# The page that explains how a command is used.
GUIDES = {
    "train": ("Train a model", "../training.md"),
    "config": ("Train a model", "../training.md"),
    "sample": ("Choose a solver", "../choosing.md"),
    "restore": ("Solve inverse problems", "../inverse-problems.md"),
    "edit": ("Edit samples", "../editing.md"),
    "show": ("Figures and films", "../figures.md"),
    "app": ("Reports and the app", "../reports.md"),
    "evaluate": ("Evaluate samples", "../evaluation.md"),
    "inspect": ("Prepare data", "../data.md"),
    "likelihood": ("Compute likelihoods", "../likelihood.md"),
    "prepare": ("Prepare data", "../data.md"),
    "compare": ("Compare solvers", "../comparing.md"),
    "tune": ("Tune a solver", "../tuning.md"),
    "distill": ("Few steps by distillation", "../few-steps.md"),
    "doctor": ("Bring your network", "../bring-your-network.md"),
    "solvers": ("Choose a solver", "../choosing.md"),
    "verify": ("Verify a solver", "../verify.md"),
}


def page(name: str) -> str:
    """The page of a command, as Markdown."""
    command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    lines = [f"# sdediff {name}", "", *_wrapped(command.help or "")]
    if name in GUIDES:
        lines += ["", f"Guide: [{GUIDES[name][0]}]({GUIDES[name][1]})."]
    examples = [line for line in (command.epilog or "").splitlines() if re.match(r"(sdediff|accelerate) ", line)]
    if examples:
        lines += ["", "```bash", *[re.sub(r" {2,}(?=\S)", "  # ", line, count=1) for line in examples], "```"]
    if name in PICTURES and (FOLDER.parent / "images" / PICTURES[name][0]).is_file():
        file, text = PICTURES[name]
        lines += ["", f"![{text}](../images/{file})"]
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if parameter.name != "help" and not getattr(parameter, "hidden", False):
            heading = getattr(parameter, "rich_help_panel", None) or "Options"
            heading = "Arguments" if parameter.param_type_name == "argument" else heading
            panels.setdefault(heading, []).append(parameter)
    for heading, parameters in panels.items():
        lines += ["", f"## {heading}", "", "| | default | meaning |", "| --- | --- | --- |"]
        lines += [_row(parameter) for parameter in parameters]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        found += ["", *textwrap.wrap(" ".join(paragraph.split()), 98)] if found else textwrap.wrap(paragraph, 98)
    return found


def _row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if argument else parameter.opts
    names = [*names, *getattr(parameter, "secondary_opts", [])]
    shown = ", ".join(f"`{name}`" for name in names).replace("|", "\\|")
    usual = getattr(parameter, "show_default", None)
    if not isinstance(usual, str):
        value = parameter.default
        usual = (
            ""
            if value is None or value is False or value in ((), []) or callable(value)
            else str(getattr(value, "value", value))
        )
    text = (getattr(parameter, "help", "") or "").replace("|", "\\|")
    return f"| {shown} | {usual.replace('|', chr(92) + '|')} | {text} |"


def overview() -> str:
    """The page that lists all commands."""
    rows = [f"| [`{name}`]({name}.md) | {text} |" for name, text in SUMMARIES.items()]
    head = ["# Commands", "", "Every command takes `--help` and `--json`; see [options of all commands](#all)."]
    tail = [
        "",
        "## Options of all commands {: #all }",
        "",
        "- `--json` prints one JSON object, in which `written` lists the files.",
        "- `--quiet`, `-q` shows no progress and prints only the paths of the files written.",
        "- `NO_COLOR=1` removes colours, and a pipe gets none.",
        "- `SDEDIFF_TRACEBACK=1` shows full tracebacks.",
        "- The exit code is 0 on success, 2 if the command was used wrongly, 1 for a bug or a failed",
        "  check (`doctor`, `verify`), 130 after Ctrl-C.",
        "",
        "`sdediff --install-completion` completes commands, options and their values in the shell.",
    ]
    return "\n".join([*head, "", "| command | purpose |", "| --- | --- |", *rows, *tail]) + "\n"


def pages() -> dict[str, str]:
    """All pages by file name."""
    return {"index.md": overview(), **{f"{name}.md": page(name) for name in SUMMARIES}}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python docs/command_pages.py --write")
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
