"""The counts in docs/architecture.md are those of the code, and within their limits."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks import structure

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_table_of_the_page_is_up_to_date() -> None:
    shown = structure.PAGE.read_text().split(structure.BEGIN)[1].split(structure.END)[0].strip()
    assert shown == structure.table().strip(), "run: python -m benchmarks.structure --write"


def test_folders_and_files_are_small() -> None:
    names = (*structure.PACKAGES, "benchmarks", "tests")
    assert max(structure.modules_per_folder(names).values()) <= 16
    assert max(structure.lines(names).values()) <= 400
    assert statistics.median(structure.lines().values()) <= 120


def test_no_import_runs_against_the_layers() -> None:
    assert structure.imports_against_the_layers() == []


def test_the_path_of_x_starts_at_sample_and_ends_at_the_model() -> None:
    path = structure.path_of_x("ddim", nfe=3)
    assert path[0].endswith("sampler.py:sample")
    assert path[-1].startswith("sde_diffusion/models/")
    assert any(frame.endswith("ancestral.py:step") for frame in path)


def answers() -> list[str]:
    """The paths of the section "Where does it live?"."""
    section = structure.PAGE.read_text().split("## Where does it live?")[1].split("\n## ")[0]
    return [line.split("`")[1] for line in section.splitlines() if "`" in line]


@pytest.mark.parametrize("path", answers())
def test_where_it_lives_is_a_path(path: str) -> None:
    assert (ROOT / path).exists()


def test_nine_questions_are_answered() -> None:
    assert len(answers()) == 9
