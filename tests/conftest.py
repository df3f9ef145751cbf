from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# One thread: the tensors are small, the workers run side by side, and sums then have one order.
torch.set_num_threads(1)
# What commands print does not depend on the terminal that started pytest.
os.environ.update(OMP_NUM_THREADS="1", NO_COLOR="1", TERM="dumb", COLUMNS="120")
for name in ("FORCE_COLOR", "PY_COLORS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in a directory of its own: none finds or leaves ``runs/`` elsewhere."""
    monkeypatch.chdir(tmp_path)
