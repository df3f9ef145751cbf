"""`make check` runs the tests that belong to a changed file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "changed_tests.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="not in the source distribution")


def selected(*names: str) -> set[str]:
    spec = importlib.util.spec_from_file_location("changed_tests", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {str(path.relative_to(ROOT)) for path in module.selected([ROOT / name for name in names], ROOT)}


def test_a_module_brings_its_doctests_and_the_tests_that_import_it() -> None:
    found = selected("sde_diffusion/training/config.py")
    assert found >= {"sde_diffusion/training/config.py", "tests/sde_diffusion/training/test_options.py"}
    assert not any(name.startswith("tests/solvers") for name in found)
    assert "tests/sde_diffusion/training/test_ema.py" in selected("sde_diffusion/training/ema.py")


def test_a_test_brings_itself_and_other_files_bring_none() -> None:
    assert selected("tests/test_layout.py") == {"tests/test_layout.py"}
    assert selected("tests/conftest.py", "docs/fence_doctests.py") == set()
    assert selected("benchmarks/held_out.py") == {"tests/benchmarks/test_held_out.py"}
