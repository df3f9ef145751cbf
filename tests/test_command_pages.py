"""The pages of the commands are those of the program."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from sde_diffusion.cli import SUMMARIES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("command_pages", ROOT / "docs" / "command_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(pages: ModuleType) -> None:
    written = {path.name: path.read_text() for path in pages.FOLDER.glob("*.md")}
    assert written == pages.pages(), "run: python docs/command_pages.py --write"


def test_every_option_of_every_command_is_on_its_page(pages: ModuleType) -> None:
    assert set(pages.GUIDES) == set(SUMMARIES)
    text = pages.page("train")
    for option in ("`--data`", "`--sample-every`", "`--network-size`", "`--flip`, `--no-flip`", "`--quiet`, `-q`"):
        assert f"| {option} |" in text
    assert "| `FIGURE` |" in pages.page("show") and "trajectories" in pages.page("show")
    # No cell breaks its table: each row has three cells.
    rows = [line.replace("\\|", "") for name in SUMMARIES for line in pages.page(name).splitlines() if line[:1] == "|"]
    assert {row.count("|") for row in rows} == {4}


def test_the_navigation_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert all(f"commands/{name}.md" in text for name in ("index", *SUMMARIES))
