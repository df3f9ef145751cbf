"""Imports run one way: solvers below sde_diffusion, and inside it from the leaves up to the cli."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Folders of sde_diffusion, bottom first. A module may import its own folder and those of earlier rows only, inside
# functions and for annotations as well, so the folders of one row know nothing of each other.
LAYERS = [
    {"files", "parallel", "text"},
    {"networks", "data", "sde"},
    {"report"},
    {"models"},
    {"guidance", "points"},
    {"storage"},
    {"training", "sampling"},
    {"likelihood", "verify", "distillation", "semantic", "cascade"},
    {"evaluation"},
    {"comparison", "tuning"},
    {"interop"},
    {"app"},
    {"public"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# The same for solvers: single modules first, then the families, then what knows them all.
SOLVER_LAYERS = [
    {"errors"},
    {"display"},
    {"noise", "denoiser", "conditions", "noise_clock"},
    {"brownian_path"},
    {"problem"},
    {"grids", "exact_step"},
    {"solver"},
    {"registry"},
    {"planning"},
    {"run"},
    {"integrate"},
    {"exponential", "backends"},
    {"classical"},
    {"diffusion"},
    {"fitted"},
    {"plugin"},
]
SOLVER_LEVEL = {name: level for level, names in enumerate(SOLVER_LAYERS) for name in names}

# These need nothing of the solvers but the wording of an error and the display of a result.
SELF_CONTAINED = {"files", "networks", "data", "text"}
SHARED = {"errors", "display"}

DISPLAYS = {"matplotlib", "pandas"}
BACKENDS = {"torchdiffeq", "torchsde", "scipy"}
SOLVERS_MAY_USE = {"solvers", "torch", "numpy"} | sys.stdlib_module_names


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Each absolute name that the source imports, inside functions and under TYPE_CHECKING as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if is_package else -1]
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_arrows(module: str, source: str, is_package: bool = False) -> list[str]:
    """What the module imports against the layout, one sentence each."""
    package, *inner = module.split(".")
    unit = inner[0] if inner else None
    levels = {"solvers": SOLVER_LEVEL, "sde_diffusion": LEVEL}[package]
    if unit is not None and unit not in levels:
        return [f"{module} has no place in the layers of {package}"]
    wrong = []
    for name in imported(source, module, is_package):
        top, *rest = name.split(".")
        target = rest[0] if rest else ""
        if package == "solvers" and top != "solvers":
            if top in BACKENDS and unit != "backends":
                wrong.append(f"{module} imports {name}: only solvers.backends may")
            elif top in DISPLAYS and unit != "display":
                wrong.append(f"{module} imports {name}: only solvers.display may")
            elif top not in SOLVERS_MAY_USE | BACKENDS | DISPLAYS:
                wrong.append(f"{module} imports {name}: solvers use torch, numpy and themselves")
        elif top == "solvers" and unit in SELF_CONTAINED and target not in SHARED:
            wrong.append(f"{module} imports {name}: {unit} may use solvers.errors and solvers.display only")
        elif top == package and target != unit:
            # A name that is no folder or module is of the package itself, which imports all but the last layers.
            last = max(levels.values()) + 1
            mine = last if unit is None else levels[unit]
            if package == "sde_diffusion" and unit is None:
                mine = levels["cli"]
            theirs = levels.get(target, levels.get("cli", last) - (package == "sde_diffusion"))
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
        ("solvers.classical.heun", "import sde_diffusion"),
        ("solvers.classical.heun", "from sde_diffusion.sde import VPSDE"),
        ("solvers.classical.heun", "if TYPE_CHECKING:\n    from sde_diffusion.sde import VPSDE"),
        ("solvers.classical.heun", "def f():\n    import scipy.integrate"),
        ("solvers.classical.heun", "from torchsde import sdeint"),
        ("solvers.classical.heun", "from solvers.fitted.table import Table"),
        ("solvers.integrate", "def f():\n    from solvers.fitted.pf_ode import ProbabilityFlow"),
        ("solvers.classical.heun", "from solvers import solve"),
        ("solvers.exponential.adams", "from solvers.classical.euler import Euler"),
        ("solvers.noise", "from solvers.integrate import solve"),
        ("solvers.backends", "import matplotlib"),
        ("solvers.display.figures", "import scipy"),
        ("solvers.display.figures", "from solvers.run.solution import Solution"),
        ("sde_diffusion.report.pictures", "from sde_diffusion.models.score_model import ScoreModel"),
        ("solvers.unheard_of", ""),
        ("sde_diffusion.unheard_of", ""),
        ("sde_diffusion.networks.unet", "from sde_diffusion.sde import VPSDE"),
        ("sde_diffusion.networks.unet", "from ..sde import VPSDE"),
        ("sde_diffusion.networks.unet", "from solvers import solve"),
        ("sde_diffusion.data.toy", "from sde_diffusion import networks"),
        ("sde_diffusion.sde", "if TYPE_CHECKING:\n    from sde_diffusion.models.score_model import ScoreModel"),
        ("sde_diffusion.sde", "def f():\n    from sde_diffusion.models import ScoreModel"),
        ("sde_diffusion.models.score_model", "from sde_diffusion import sampling"),
        ("sde_diffusion.storage.tuned_solver", "from sde_diffusion.tuning import tune"),
        ("sde_diffusion.training.losses", "from sde_diffusion.sampling.sampler import sample"),
        ("sde_diffusion.training.losses", "from sde_diffusion import VPSDE"),
        ("sde_diffusion.training.trainer", "from sde_diffusion.cli import app"),
        ("sde_diffusion", "from sde_diffusion.cli import app"),
        ("sde_diffusion.cli.commands.sample", "import sde_diffusion.__main__"),
    ],
)
def test_an_arrow_the_wrong_way_is_seen(module: str, source: str) -> None:
    assert len(wrong_arrows(module, source, module == "sde_diffusion")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("solvers.backends", "import scipy.integrate, torchsde, math"),
        ("solvers.classical.heun", "from solvers.noise import Noise\nfrom . import euler\nimport numpy as np"),
        ("solvers", "from solvers.fitted import ProbabilityFlow"),
        ("sde_diffusion", "from .training import train\nfrom sde_diffusion.models import ScoreModel"),
        ("sde_diffusion.networks.unet", "from .mlp import MLP\nfrom solvers.errors import choose"),
        ("sde_diffusion.sde", "from solvers import ReverseProcess"),
        ("sde_diffusion.sampling.sampler", "from solvers import solve\nfrom sde_diffusion import models"),
        ("sde_diffusion.cli.commands.sample", "from sde_diffusion import load, sample\nimport typer"),
        ("sde_diffusion.__main__", "from sde_diffusion.cli import app"),
    ],
)
def test_an_arrow_the_right_way_passes(module: str, source: str) -> None:
    assert wrong_arrows(module, source, module == "sde_diffusion") == []


PACKAGES = sorted({path.parent for path in FILES})


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_folder_is_crowded(folder: Path) -> None:
    assert len([p for p in folder.glob("*.py") if p.stem not in ("__init__", "__main__")]) <= 16


def public_functions(path: Path) -> set[str]:
    """The functions that a file defines or exports."""
    tree = ast.parse(path.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
    return names


@pytest.mark.parametrize(
    "folder", [p for p in PACKAGES if p.name != "commands"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_module_has_the_name_of_a_public_function(folder: Path) -> None:
    """``import package.name as m`` would give the function, and the API reference would lose it."""
    modules = {p.stem for p in folder.glob("*.py")} | {p.name for p in folder.iterdir() if p.is_dir()}
    functions = set().union(*(public_functions(p) for p in folder.glob("*.py")))
    assert modules & functions == set()


# Of the builtins, these may be raised: OSError passes on what the system says of a file.
PLAIN_RAISES = {"OSError", "AttributeError", "NotImplementedError", "StopIteration", "KeyboardInterrupt", "SystemExit"}


def plain_raises(source: str) -> list[str]:
    """The builtin exceptions that a file raises, beside those it may."""
    names = [
        ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise) and node.exc is not None
    ]
    plain = {name for name in dir(builtins) if isinstance(getattr(builtins, name), type)}
    return [name for name in names if name in plain - PLAIN_RAISES]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_errors_for_users_are_those_of_the_package(path: Path) -> None:
    """``solvers.errors`` has one for each builtin: InputError for ValueError, InputTypeError for TypeError, ..."""
    assert plain_raises(path.read_text()) == []


def test_a_plain_raise_is_seen() -> None:
    assert plain_raises("def f():\n    raise ValueError('no')\n") == ["ValueError"]
    assert plain_raises("raise InputError('no')\nraise OSError(1, 'no')\nraise error\nraise\n") == []
