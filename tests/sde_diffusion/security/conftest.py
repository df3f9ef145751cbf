"""A run and a set of samples for the attacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command import invoke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a set of samples of it, made once."""
    root = tmp_path_factory.mktemp("made")
    out = invoke("train", "--data", "moons", "--steps", 4, "--checkpoint-every", 2, "--batch-size", 8, "--width", 8,
              "--depth", 1, "--out", root / "run")  # fmt: skip
    assert out.exit_code == 0, out.output
    assert invoke("sample", "bundled", "--n", 4, "--nfe", 2, "--out", root / "set").exit_code == 0
    return root


@pytest.fixture
def home(made: Path) -> Path:
    """A folder with a copy of them, where the user stands."""
    shutil.copytree(made / "run", "run")
    shutil.copytree(made / "set", "set")
    return Path()
