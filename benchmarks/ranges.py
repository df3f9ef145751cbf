"""Error of pf-ode from every start, per cell against the best UniPC and DPM-Solver++ of diffusers and of this library.

    python -m benchmarks.ranges [--nfe 5 6 8 10 15 20 50] [--ranges ...] [--foreign-dir DIR] [--out DIR]
    python -m benchmarks.ranges --before DIR --out DIR

Ranges are noise levels sigma / alpha from the start to 0: 3, 6.6, 14.6 (Stable Diffusion's betas), 80 (EDM), 152 (VP),
1000 (VE) and infinity (straight path, cosine). Our solvers depend on noise levels alone, so 3, 6.6, 80 and 1000 are
processes with linear beta(t) and that end, whose times suit the grids of the peers too. No table was fitted to these
problems. Thirty random models (``benchmarks.exact_family.random_models``) run on two of the ranges each, against our
own solvers alone, and the networks of this repository on their own: digits and MNIST, and four of CIFAR-10 at 16 x 16
(VP; the straight path; the preconditioning of Karras et al. 2022; noise prediction from a start of 14.6). Every sampler
gets the same initial noise and NFE; an error is the root mean square distance of a sample to the endpoint of the flow.
Both "best" are chosen per cell in hindsight, from the means over the initial noise. With ``--foreign-dir``, a network
trained by others is measured on its own range; it influenced no design choice.

Reference solutions and the errors of all but pf-ode are kept in ``--references``, so a run that was interrupted goes
on, and a changed pf-ode is measured in minutes; remove the folder when another solver changes.

``ranges.json`` and ``ranges.md`` in the output folder are the result; ``--before`` adds the figures of an older result.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.exact_family.random_models import random_models
from benchmarks.peers import Config, Task, peers
from benchmarks.problems import gaussian_spectrum
from benchmarks.report import geometric_mean
from sde_diffusion import DDPM, SDE, VPSDE, CosineVPSDE, Flow, GaussianMixture, ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import BUNDLED
from solvers import Solver, solve
from solvers.fitted.pf_ode import ProbabilityFlow

NFE = (5, 6, 8, 10, 15, 20, 50)
FOREIGN, RANDOM, HOME, CIFAR = "external network", "random models", "own networks", "CIFAR-10 networks"
_FOLDER = Path("benchmarks/networks")
NETWORKS = {
    HOME: {"digits": (BUNDLED, 48), "MNIST": (_FOLDER / "mnist.safetensors", 16)},
    CIFAR: {
        "VP": (_FOLDER / "cifar16.safetensors", 12),
        "straight path": (_FOLDER / "cifar16-flow.safetensors", 12),
        "EDM": (_FOLDER / "cifar16-edm.safetensors", 12),
        "noise, starts at 14.6": (_FOLDER / "cifar16-low.safetensors", 12),
    },
}
_NOTHING = 1e-6  # an error that counts as 0
_OURS = [(s, g) for s in ("unipc", "dpm++2m") for g in (None, "quadratic", "karras", "log-snr", "angle")]


def linear(rho: float) -> VPSDE:
    """The process with linear beta(t) whose sigma / alpha ends at rho."""
    return VPSDE(beta_max=2 * math.log1p(rho**2) - 0.1)


def ranges() -> dict[str, SDE]:
    """The processes by name."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return {
        "3": linear(3.0),
        "6.6": linear(6.6),
        "14.6 (Stable Diffusion)": DDPM(betas=betas.tolist()),
        "80 (EDM)": linear(80.0),
        "152 (VP)": VPSDE(),
        "1000 (VE)": linear(1000.0),
        "straight": Flow(),
        "cosine": CosineVPSDE(),
    }


def _images(n: int, generator: torch.Generator) -> Tensor:
    """Images of 3 x 16 x 16 with a spectrum of 1 / f, (n, 768)."""
    f2 = torch.arange(16, dtype=torch.float64) ** 2
    waves = torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64) / (0.5 + f2[:, None] + f2).sqrt()
    return (0.5 * waves / waves.std()).flatten(1)


def _rings() -> Tensor:
    angle = 2 * math.pi * torch.arange(80, dtype=torch.float64) / 80
    return torch.stack([angle.cos(), angle.sin()], 1) * torch.where(torch.arange(80) % 2 == 0, 0.5, 1.0)[:, None]


class _RandomNetwork(nn.Module):
    """Random features with the preconditioning of Karras et al. 2022, d = 0.5: (x, t) -> D."""

    def __init__(self, sde: SDE, d: int = 16, width: int = 64) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(77)
        self.sde = sde
        self.first = torch.randn(d, width, generator=g, dtype=torch.float64) * 1.2 / math.sqrt(d)
        self.told = torch.randn(3, width, generator=g, dtype=torch.float64) * 0.6
        self.second = torch.randn(width, d, generator=g, dtype=torch.float64) / math.sqrt(width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction of E[x_0 | x_t]."""
        alpha, sigma = (c[:, None] for c in self.sde.marginal(t))
        n = torch.sqrt(sigma**2 + 0.25 * alpha**2)
        log = torch.log(sigma / n).clamp_min(-8)
        hidden = torch.tanh((x / n) @ self.first + torch.cat([log, log.sin(), (2 * log).cos()], 1) @ self.told)
        return 0.25 * alpha / n**2 * x + 0.5 * sigma / n * (hidden @ self.second)


def problems() -> dict[str, Callable[[SDE], ScoreModel]]:
    """Models of exact data, and one network of random features, on any process."""
    g = torch.Generator().manual_seed(2024)
    images, cloud = _images(60, g), 0.6 * torch.randn(30, 24, generator=g, dtype=torch.float64)
    digits = torch.from_numpy(load_digits().images[1400:1790] / 8 - 1).reshape(-1, 64)
    falling = torch.arange(1, 101, dtype=torch.float64) ** -1.2
    return {
        "images, 768": lambda sde: GaussianMixture(images, std=0.15, sde=sde),
        "digits, 64": lambda sde: GaussianMixture(digits, std=0.15, sde=sde),
        "rings, 2": lambda sde: GaussianMixture(_rings(), std=0.03, sde=sde),
        "rings + 3, 2": lambda sde: GaussianMixture(_rings() + 3, std=0.03, sde=sde),
        "cloud, 24": lambda sde: GaussianMixture(cloud, std=0.1, sde=sde),
        "Gaussian, 100": lambda sde: gaussian_spectrum(falling * (0.3 / falling.mean()), sde),
        "random network, 16": lambda sde: ScoreModel(_RandomNetwork(sde), sde, "data", (16,)),
    }


def rivals() -> list[Config]:
    """diffusers' UniPC and DPM-Solver++ multistep on each of its grids, down to 0; empty without diffusers."""
    kinds = ("UniPCMultistep-2 bh2", "UniPCMultistep-3", "DPMSolverMultistep++2M midpoint", "DPMSolverMultistep++3M")
    return [c for c in peers(("diffusers",))[0] if c.name.startswith(kinds) and c.name.endswith("zero")]


def _foreign(folder: Path) -> ScoreModel | None:
    """The external network, from its own loader."""
    file = folder / "loaders.py"
    if not file.exists():
        return None
    spec = importlib.util.spec_from_file_location("foreign_loaders", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: ScoreModel = module.load("mnist-geometric")
    return model


def cells(names: Sequence[str], foreign: Path) -> Iterator[tuple[str, str, ScoreModel, int]]:
    """Range, problem, model and number of noise samples."""
    for label, sde in ranges().items():
        if label in names:
            for problem, make in problems().items():
                yield label, problem, make(sde), 16
    if RANDOM in names:
        yield from _random_cells()
    for label, networks in NETWORKS.items():
        if label in names:
            for name, (file, n) in networks.items():
                yield label, name, load(file).eval().requires_grad_(False), n
    model = _foreign(foreign)
    if model is None:
        print(f"left out: {FOREIGN} (no loaders.py in {foreign}; --foreign-dir says where it is)", file=sys.stderr)
    else:
        yield FOREIGN, "MNIST, starts at 6.6", model, 6


def _random_cells() -> Iterator[tuple[str, str, ScoreModel, int]]:
    """Each random model on two of the ranges; noise prediction is not defined at pure noise."""
    processes = list(ranges().items())
    for i, (name, make) in enumerate(random_models().items()):
        for first in (3 * i, 3 * i + 3):
            turn = (processes[(first + k) % len(processes)] for k in range(3))
            label, sde = next(p for p in turn if "noise" not in name or p[0] not in ("straight", "cosine"))
            yield RANDOM, f"{name} @ {label}", make(sde), 16


@torch.no_grad()
def measure(
    model: ScoreModel,
    n: int,
    budgets: Sequence[int],
    others: Sequence[Config],
    stored: Path,
    solver: str | Solver = "pf-ode",
) -> dict[int, dict[str, Any]]:
    """By NFE: mean and median error of pf-ode, of the best peer, of our best UniPC or DPM++(2M)."""
    assert model.shape is not None
    exact = not any(p.dtype == torch.float32 for p in model.parameters())
    dtype = torch.float64 if exact else torch.float32
    x1 = model.sde.prior((n, *model.shape), seeds=range(900, 900 + n), dtype=dtype)
    if stored.exists():
        truth = torch.load(stored)
    else:
        truth, _ = converged(model, x1, steps=400 if exact else 200)
        stored.parent.mkdir(parents=True, exist_ok=True)
        torch.save(truth, stored)
    ode = model.sde.probability_flow(model)
    known = KnownErrors(stored.with_suffix(".json"))

    def error(other: str | Solver, nfe: int, grid: str | None = None) -> list[float]:
        return _both(rms(solve(ode, x1, solver=other, nfe=nfe, grid=grid).x - truth))

    def peer(config: Config, nfe: int) -> list[float] | None:
        task = Task(model, x1)
        x = config.run(task, nfe)
        return _both(rms(x - truth)) if x is not None and task.calls <= nfe else None

    found = {}
    for nfe in budgets:
        ours = {(n := f"{s} {g or 'own grid'}"): known.get(n, nfe, partial(error, s, nfe, g)) for s, g in _OURS}
        theirs = {config.name: known.get(config.name, nfe, partial(peer, config, nfe)) for config in others}
        own = error(solver, nfe)
        found[nfe] = {"pf-ode": own, "best of ours": _best(ours), "best peer": _best(theirs) if theirs else None}
        known.write()
    return found


class KnownErrors:
    """Errors of the configurations that pf-ode is compared with, kept in a file so that a run can go on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.errors: dict[str, list[float] | None] = json.loads(file.read_text()) if file.exists() else {}

    def get(self, name: str, nfe: int, compute: Callable[[], list[float] | None]) -> list[float] | None:
        """The mean and median error at an NFE; None if the configuration cannot run there."""
        key = f"{name} @ {nfe}"
        if key not in self.errors:
            self.errors[key] = compute()
        return self.errors[key]

    def write(self) -> None:
        """Keep all of them."""
        self.file.write_text(json.dumps(self.errors))


def _both(errors: Tensor) -> list[float]:
    value = [float(errors.mean()), float(errors.median())]
    return [v if math.isfinite(v) else math.inf for v in value]


def _best(errors: Mapping[str, list[float] | None]) -> list[Any]:
    able = {name: both for name, both in errors.items() if both is not None}
    name = min(able, key=lambda key: able[key][0])
    return [name, *able[name]]


def report(found: list[dict[str, Any]], before: list[dict[str, Any]], budgets: Sequence[int], command: str) -> str:
    """The tables, in Markdown."""
    old = {(c["range"], c["problem"], c["nfe"]): c for c in before}
    lines = [
        "# pf-ode from every start",
        "",
        f"    {command}",
        "",
        "Geometric means over the problems of the error of pf-ode over that of the best configuration of",
        "diffusers' UniPC and DPM-Solver++ for each cell, by means over the noise; in brackets over the",
        "best of our own `unipc` and `dpm++2m` on five grids"
        + ("; after the arrow\nthe former divided by its value before." if before else "."),
        "",
        "| range | " + " | ".join(map(str, budgets)) + " | all |",
        "| --- |" + " ---: |" * (len(budgets) + 1),
    ]
    for label in dict.fromkeys(c["range"] for c in found):
        row = []
        for group in (*[[n] for n in budgets], list(budgets)):
            some = [c for c in found if c["range"] == label and c["nfe"] in group]
            text = f"{_ratio(some, 'best peer')} ({_ratio(some, 'best of ours')})"
            pairs = [(c, old[key]) for c in some if (key := (c["range"], c["problem"], c["nfe"])) in old]
            if pairs:
                gains = [(a["pf-ode"][0] + _NOTHING) / (b["pf-ode"][0] + _NOTHING) for a, b in pairs]
                text += f" -> {geometric_mean(gains):.2f}"
            row.append(text)
        lines.append(f"| {label} | " + " | ".join(row) + " |")
    lines += [
        "",
        "Single cells: error of pf-ode; its ratio to the best peer by means and by medians; to the best of",
        "ours.",
        "",
    ]
    lines += ["| range | problem | " + " | ".join(map(str, budgets)) + " |", "| --- | --- |" + " --- |" * len(budgets)]
    keys = dict.fromkeys((c["range"], c["problem"]) for c in found)
    by_key = {(c["range"], c["problem"], c["nfe"]): c for c in found}
    for key in keys:
        row = [_cell(by_key[(*key, n)]) if (*key, n) in by_key else "" for n in budgets]
        lines.append(f"| {key[0]} | {key[1]} | " + " | ".join(row) + " |")
    lines += ["", *(_count(found, other, limit) for other, limit in (("best peer", 1.2), ("best of ours", 1.1))), ""]
    return "\n".join(lines)


def _count(found: list[dict[str, Any]], other: str, limit: float) -> str:
    """How many cells are lost to the others, by means and by means and medians together."""
    able = [c for c in found if c[other]]
    by_mean = [c for c in able if _over(c, other, 0) > limit]
    both = sum(_over(c, other, 1) > limit for c in by_mean)
    name = {"best peer": "the best peer", "best of ours": "the best of our own UniPC and DPM++(2M)"}[other]
    at_random = sum(c["range"] == RANDOM for c in by_mean)
    return (
        f"- Above {limit} times {name}: {len(by_mean)} of {len(able)} cells\n"
        f"  by the mean, {at_random} of them of random models; {both} by mean and median together.\n"
    )


def _over(cell: dict[str, Any], other: str, which: int) -> float:
    ratio: float = (cell["pf-ode"][which] + _NOTHING) / (cell[other][1 + which] + _NOTHING)
    return ratio


def _ratio(some: list[dict[str, Any]], other: str) -> str:
    values = [_over(c, other, 0) for c in some if c[other]]
    return f"{geometric_mean(values):.2f}" if values else "-"


def _cell(cell: dict[str, Any]) -> str:
    peer = f"{_over(cell, 'best peer', 0):.2f}, {_over(cell, 'best peer', 1):.2f}; " if cell["best peer"] else ""
    return f"{cell['pf-ode'][0]:.2g}; {peer}{_over(cell, 'best of ours', 0):.2f}"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.ranges", description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFE))
    parser.add_argument("--ranges", nargs="*", default=[*ranges(), RANDOM, *NETWORKS])
    parser.add_argument("--foreign-dir", type=Path, default=Path("../shared/foreign"))
    parser.add_argument("--before", type=Path)
    parser.add_argument("--no-peers", action="store_true", help="measure our solvers only, for --before")
    parser.add_argument("--unit-scale", action="store_true", help="measure ProbabilityFlow(scale=1.0) as pf-ode")
    parser.add_argument("--references", type=Path, default=Path("runs/ranges-references"))
    parser.add_argument("--out", type=Path, default=Path("runs/ranges"))
    args = parser.parse_args()
    known = [*ranges(), RANDOM, *NETWORKS]
    if min(args.nfe) < 1 or set(args.ranges) - {*known}:
        parser.error(f"--nfe is at least 1, --ranges are some of {known}; got {args.nfe} and {args.ranges}")
    torch.set_num_threads(1)
    others = [] if args.no_peers else rivals()
    solver: str | Solver = ProbabilityFlow(scale=1.0) if args.unit_scale else "pf-ode"
    found = []
    for label, problem, model, n in track(
        list(cells(args.ranges, args.foreign_dir)), "ranges", console=Console(stderr=True)
    ):
        stored = args.references / f"{label}-{problem}-{n}.pt".replace("/", "_")
        rivals_here = [] if label == RANDOM else others
        for nfe, cell in measure(model, n, args.nfe, rivals_here, stored, solver).items():
            found.append({"range": label, "problem": problem, "nfe": nfe, **cell})
    before = json.loads((args.before / "ranges.json").read_text())["cells"] if args.before else []
    args.out.mkdir(parents=True, exist_ok=True)
    words = [a for a in sys.argv[1:] if a not in ("--before", str(args.before))]
    command = " ".join(["python -m benchmarks.ranges", *words])
    (args.out / "ranges.json").write_text(json.dumps({"command": command, "cells": found}))
    text = report(found, before, args.nfe, command)
    (args.out / "ranges.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
