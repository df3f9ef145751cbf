"""The first hours are commands that exist, and their transcripts are of these commands and within their time."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from benchmarks.first_use import journeys
from sde_diffusion.cli import app

COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", journeys.JOURNEYS)
def test_commands_exist_and_their_files_are_written_before(name: str, tmp_path: Path) -> None:
    written: set[str] = set()
    for step in journeys.JOURNEYS[name]:
        written |= {step.file} - {""}
        assert set(re.findall(r"(\w+\.py)", step.command)) <= written, step
        if step.file:
            compile(step.text, step.file, "exec")
        words = shlex.split(step.command.split(";")[0])
        if words[0] == "sdediff":
            assert COMMANDS[words[1]].make_context(words[1], words[2:]).params


@pytest.mark.parametrize("name", journeys.JOURNEYS)
def test_the_transcript_is_of_these_commands_and_within_the_limit(name: str) -> None:
    text = (journeys.RESULTS / f"{name}.txt").read_text()
    assert re.findall(r"^\$ (.*)$", text, re.M) == [step.command for step in journeys.JOURNEYS[name]]
    found = re.search(r"^# (\d+) s in all, (\d+) s of CPU$", text, re.M)
    assert found is not None and int(found[2]) < journeys.LIMIT
    assert "this is a bug" not in text and "Traceback" not in text


def test_a_step_that_fails_ends_the_journey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(journeys.JOURNEYS, "broken", [journeys.Step("fail", "exit 3"), journeys.Step("never", "true")])
    with pytest.raises(SystemExit, match="step 'fail' of broken failed with code 3"):
        journeys.journey("broken", tmp_path / "kept")
