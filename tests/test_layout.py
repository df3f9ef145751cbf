"""Imports run one way: solvers below sde_diffusion, and inside it from the leaves up to the cli."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Modules (or sub-packages) of sde_diffusion. One may import those of earlier rows only, so the
# members of a row know nothing of each other. A new module takes its place here.
LAYERS = [
    {"networks", "data", "metrics", "sde", "ema", "plots", "storage", "progress", "signals", "engine"},
    {"score", "runs", "solver_json", "divergence", "bits", "features", "times", "weights", "variance"},
    {"analytic", "discrete", "losses", "guidance", "checkpoint", "reference"},
    {
        "sample",
        "converged",
        "likelihood",
        "latent",
        "config",
        "draws",
        "places",
        "defaults",
        "objective",
        "posthoc",
    },
    {"trainer", "configfile", "tuning", "verify", "profile", "elbo", "compare", "choose_solver"},
    {"train", "card", "likelihood_report"},
    {"evaluation"},
    {"comparison_report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# These need nothing of the solvers but the wording of an error.
SELF_CONTAINED = {"networks", "data", "metrics", "plots"}

BACKENDS = {"torchdiffeq", "torchsde", "scipy"}
SOLVERS_MAY_USE = {"solvers", "torch", "numpy"} | sys.stdlib_module_names


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """Each absolute name that the source imports, and whether for annotations alone."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if is_package else -1]
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in for_types


def wrong_arrows(module: str, source: str, is_package: bool = False) -> list[str]:
    """What the module imports against the layout, one sentence each."""
    package, *inner = module.split(".")
    unit = inner[0] if inner else None
    if package == "sde_diffusion" and unit is not None and unit not in LEVEL:
        return [f"{module} has no place in LAYERS"]
    wrong = []
    for name, types_only in imported(source, module, is_package):
        top, *rest = name.split(".")
        target = rest[0] if rest else ""
        if package == "solvers":
            if top in BACKENDS and unit != "backends":
                wrong.append(f"{module} imports {name}: only solvers.backends may")
            elif top not in SOLVERS_MAY_USE | BACKENDS:
                wrong.append(f"{module} imports {name}: solvers use torch, numpy and themselves")
        elif top == "solvers" and unit in SELF_CONTAINED and target != "errors":
            wrong.append(f"{module} imports {name}: {unit} may use solvers.errors only")
        elif top == "sde_diffusion" and not types_only and target != unit:
            # The package imports everything but the cli. A name that is no module is the package's.
            mine = LEVEL["cli"] if unit is None else LEVEL[unit]
            theirs = LEVEL.get(target, LEVEL["cli"] - 1)
            if theirs >= mine:
                wrong.append(f"{module} imports {name}: the arrow runs the other way")
    return wrong


FILES = sorted(p for name in ("solvers", "sde_diffusion") for p in (ROOT / name).rglob("*.py"))


def test_the_files_are_found() -> None:
    found = {module_name(path) for path in FILES}
    assert found >= {"solvers", "solvers.integrate", "sde_diffusion.sde", "sde_diffusion.networks"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_layout(path: Path) -> None:
    assert wrong_arrows(module_name(path), path.read_text(), path.stem == "__init__") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("solvers.heun", "import sde_diffusion"),
        ("solvers.heun", "from sde_diffusion.sde import VPSDE"),
        ("solvers.heun", "if TYPE_CHECKING:\n    from sde_diffusion.sde import VPSDE"),
        ("solvers.heun", "def f():\n    import scipy.integrate"),
        ("solvers.heun", "from torchsde import sdeint"),
        ("solvers.backends", "import matplotlib"),
        ("sde_diffusion.unheard_of", ""),
        ("sde_diffusion.networks.unet", "from sde_diffusion.sde import VPSDE"),
        ("sde_diffusion.networks.unet", "from ..sde import VPSDE"),
        ("sde_diffusion.networks.unet", "from solvers import solve"),
        ("sde_diffusion.data.toy", "from sde_diffusion import networks"),
        ("sde_diffusion.metrics", "import sde_diffusion.data.toy"),
        ("sde_diffusion.sde", "def f():\n    from .score import ScoreModel"),
        ("sde_diffusion.score", "from sde_diffusion import sample"),
        ("sde_diffusion.losses", "from sde_diffusion.train import train"),
        ("sde_diffusion.losses", "from sde_diffusion import VPSDE"),
        ("sde_diffusion.train", "from sde_diffusion.cli import app"),
        ("sde_diffusion", "from sde_diffusion.cli import app"),
        ("sde_diffusion.cli.sample", "import sde_diffusion.__main__"),
    ],
)
def test_an_arrow_the_wrong_way_is_seen(module: str, source: str) -> None:
    assert len(wrong_arrows(module, source, module == "sde_diffusion")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("solvers.backends", "import scipy.integrate, torchsde, math"),
        (
            "solvers.heun",
            "from solvers.noise import Noise\nfrom . import grids\nimport numpy as np",
        ),
        ("sde_diffusion", "from .train import train\nfrom sde_diffusion.score import ScoreModel"),
        ("sde_diffusion.networks.unet", "from .mlp import MLP\nfrom solvers.errors import choose"),
        ("sde_diffusion.sde", "from solvers import ReverseProcess"),
        ("sde_diffusion.sde", "if TYPE_CHECKING:\n    from sde_diffusion.score import ScoreModel"),
        ("sde_diffusion.sample", "from solvers import solve\nfrom sde_diffusion import score"),
        ("sde_diffusion.cli.sample", "from sde_diffusion import load, sample\nimport typer"),
        ("sde_diffusion.__main__", "from sde_diffusion.cli import app"),
    ],
)
def test_an_arrow_the_right_way_passes(module: str, source: str) -> None:
    assert wrong_arrows(module, source, module == "sde_diffusion") == []
