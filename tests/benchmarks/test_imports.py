"""Every benchmark can be imported, so that a change of the library does not leave one behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("benchmarks.peers.",)  # they need the libraries that they compare with


def test_every_benchmark_can_be_imported() -> None:
    paths = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "benchmarks").rglob("*.py") if p.stem != "__main__"]
    names = [".".join(p.parts).removesuffix(".__init__") for p in sorted(paths)]
    names = [name for name in names if not name.startswith(OPTIONAL)]
    assert "benchmarks.ddim_table" in names
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
