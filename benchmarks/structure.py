"""Counts of the code's structure, for the table of docs/architecture.md.

    python -m benchmarks.structure            # print the table
    python -m benchmarks.structure --write    # put it into docs/architecture.md

Modules and lines are those of ``solvers`` and ``sde_diffusion``, then of ``benchmarks``. Imports against the layers
are found by ``tests/test_layout.py``. Frames for x are the stack frames of our packages from ``sample`` to the
frame that calls the network's ``forward``, counted at every evaluation of every deterministic solver with fixed steps;
the table has the largest count.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sde_diffusion import VPSDE, ScoreModel, sample, train
from sde_diffusion.data import Data
from solvers import SOLVERS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- counts -->\n", "<!-- /counts -->\n"
PACKAGES = ("solvers", "sde_diffusion")


def files(names: Sequence[str] = PACKAGES) -> list[Path]:
    """The source files of some top folders, by default of both packages."""
    return sorted(path for name in names for path in (ROOT / name).rglob("*.py"))


def modules_per_folder(names: Sequence[str] = PACKAGES) -> dict[str, int]:
    """Number of modules in each folder, without ``__init__`` and ``__main__``."""
    counts: dict[str, int] = {}
    for path in files(names):
        folder = str(path.parent.relative_to(ROOT))
        counts[folder] = counts.get(folder, 0) + (path.stem not in ("__init__", "__main__"))
    return counts


def lines(names: Sequence[str] = PACKAGES) -> dict[str, int]:
    """Number of lines of each file."""
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files(names)}


def imports_against_the_layers() -> list[str]:
    """Imports that violate the layers of ``tests/test_layout.py``, one message for each."""
    layout = runpy.run_path(str(ROOT / "tests" / "test_layout.py"))
    return [
        wrong
        for path in files()
        for wrong in layout["wrong_arrows"](layout["module_name"](path), path.read_text(), path.stem == "__init__")
    ]


def our_frames(outermost: str) -> list[str]:
    """Frames of our packages on the stack, from the function ``outermost`` to the caller's caller."""
    path: list[str] = []
    frame = sys._getframe(2)
    while frame is not None:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES:
            path.append(f"{file.relative_to(ROOT)}:{name}")
            if name == outermost:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return path[::-1]


class _Probe(nn.Module):
    """A network that records the frames from a function to its own call."""

    def __init__(self, outermost: str) -> None:
        super().__init__()
        self.outermost = outermost
        self.paths: list[list[str]] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return zero noise."""
        self.paths.append(our_frames(self.outermost))
        return 0 * self.weight * x


class _ProbeData(Data):
    """Data that records the frames from ``train`` to the request of a batch."""

    paths: ClassVar[list[list[str]]] = []

    def batch(self, index: Tensor) -> Tensor:
        """Return samples."""
        self.paths.append(our_frames("train"))
        return super().batch(index)


def path_of_x(solver: str, nfe: int = 20) -> list[str]:
    """The longest path of x from ``sample`` to the network: our frames, outermost first.

    >>> path_of_x("ddim")[0]
    'sde_diffusion/sampling/sampler.py:sample'
    """
    probe = _Probe("sample")
    sample(ScoreModel(probe, VPSDE(), predicts="noise", shape=(1, 8, 8)), 2, solver=solver, nfe=nfe)
    return max(probe.paths, key=len)


def paths_of_a_batch() -> tuple[list[str], list[str]]:
    """Our frames from ``train`` to the data, and from ``train`` to the network."""
    probe = _Probe("train")
    data = _ProbeData("zeros", torch.zeros(4, 2), None, "vector")
    train(ScoreModel(probe, VPSDE(), predicts="noise", shape=(2,)), data, steps=1, batch_size=4, progress=False)
    return _ProbeData.paths[-1], probe.paths[-1]


def fixed_step_solvers() -> list[str]:
    """Names of our solvers with fixed steps, without adapters of other libraries."""
    return [
        name
        for name, solver in SOLVERS.items()
        if not solver.adaptive and not type(solver).__module__.startswith("solvers.backends")
    ]


def sizes(label: str, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """The rows on the fullest folder and the largest file of some top folders."""
    modules, length = modules_per_folder(names), lines(names)
    crowded = max(modules, key=lambda folder: modules[folder])
    largest = max(length, key=lambda file: length[file])
    return [
        (f"modules in the fullest folder, {label}", f"{modules[crowded]} (`{crowded}`)", "16"),
        (f"lines of the largest file, {label}", f"{length[largest]} (`{largest}`)", "400"),
    ]


def counts() -> list[tuple[str, str, str]]:
    """The rows of the table: quantity, count, limit."""
    length = lines()
    frames = {name: len(path_of_x(name)) for name in fixed_step_solvers()}
    deepest = max(frames, key=lambda name: frames[name])
    usual = statistics.mode(frames.values())
    return [
        *sizes("packages", PACKAGES),
        *sizes("`benchmarks`", ["benchmarks"]),
        ("lines of the median file, packages", f"{statistics.median(length.values()):g}", "120"),
        ("frames for x, most solvers", f"{usual}", "7"),
        ("frames for x, at most", f"{frames[deepest]} (`{deepest}`)", "7"),
        ("imports against the layers", f"{len(imports_against_the_layers())}", "0"),
    ]


def table() -> str:
    """The counts and the modules of each folder, and the walks, in Markdown."""
    rows = ["| count | now | limit |", "| --- | --- | ---: |"]
    rows += [f"| {what} | {now} | {limit} |" for what, now, limit in counts()]
    folders = ["| folder | modules |", "| --- | ---: |"]
    folders += [
        f"| `{folder}` | {count} |" for folder, count in sorted(modules_per_folder((*PACKAGES, "benchmarks")).items())
    ]
    to_data, to_network = paths_of_a_batch()
    walks = []
    for title, path in (
        ("x, from `sample` to the network (`pf-ode`, 20 evaluations):", path_of_x("pf-ode")),
        ("A batch, from `train` to the data:", to_data),
        ("A batch, from `train` to the network:", to_network),
    ):
        walks += [title, "", "```text", *path, "```", ""]
    return "\n".join([*walks, *rows, "", *folders]) + "\n"


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the table in docs/architecture.md")
    args = parser.parse_args()
    if not args.write:
        print(table(), end="")
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
