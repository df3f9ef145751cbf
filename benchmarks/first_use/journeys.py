"""Three first hours, run as typed on a fresh clone in a fresh folder, with what they print, show and cost.

    student      from the lecture's formulas to pictures of one's own
    researcher   a solver and a network of one's own, measured against the usual ones
    engineer     a trained denoiser of another library: checked, tuned, sampled

    python -m benchmarks.first_use.journeys student --write

The clone takes the place of an installation: the interpreter and its packages are those that run this module. A step is
a file to write or a command for the shell; a step that fails ends the journey. With ``--write`` the transcript goes to
``benchmarks/results/journeys/``.
"""

from __future__ import annotations

import argparse
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "journeys"
LIMIT = 15 * 60  # seconds of a journey on two cores
MOST = 6  # pictures of a step that are named


class Step(NamedTuple):
    """A step: what it is for, the command, and a file to write before."""

    purpose: str
    command: str
    file: str = ""
    text: str = ""


SHAPES = """import random
from pathlib import Path
from PIL import Image, ImageDraw

random.seed(0)
for k in range(200):
    kind = ("disk", "box")[k % 2]
    image = Image.new("RGB", (40 + k % 9, 40), (20, 20, 40))
    x, y, r = random.randint(12, 28), random.randint(12, 28), random.randint(6, 11)
    draw = ImageDraw.Draw(image)
    colour = (random.randint(120, 255), random.randint(60, 255), 90)
    (draw.ellipse if kind == "disk" else draw.rectangle)((x - r, y - r, x + r, y + r), fill=colour)
    Path("photos", kind).mkdir(parents=True, exist_ok=True)
    image.save(f"photos/{kind}/{k:03d}.png")
"""

MIDPOINT = """from dataclasses import dataclass

from solvers import Solver


@dataclass(frozen=True)
class Midpoint(Solver):
    order = 2
    stages = 2  # evaluations in one step
    source = "any textbook"

    def step(self, problem, x, t, s, state, noise):
        middle = x + (t - s).neg() / 2 * problem.drift(x, t)
        return x + (s - t) * problem.drift(middle, (t + s) / 2), s, state
"""

NETWORK = '''import torch
from torch import nn

from sde_diffusion import VPSDE, ScoreModel, train
from sde_diffusion.data import load_data


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, x, t):  # x (B, 2), t (B,) in [0, 1]
        return self.layers(torch.cat([x, t[:, None].to(x)], dim=1))


def model():
    """What --model calls: a trained model."""
    torch.manual_seed(0)
    untrained = ScoreModel(Net(), VPSDE(), predicts="velocity", shape=(2,))
    return train(untrained, load_data("moons"), steps=400, progress=False)
'''

DENOISER = '''import torch

from sde_diffusion.interop import from_denoiser


def denoiser(x, sigma):
    """D(x, sigma) of an EDM or k-diffusion network: here E[x_0 | x_0 + sigma eps] of two clusters, exactly."""
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]]).to(x)
    var = (sigma.reshape(-1, 1, 1).to(x) ** 2 + 0.04)
    weights = torch.softmax(-((x[:, None] - means) ** 2).sum(-1) / (2 * var[..., 0]), 1)
    each = means + 0.04 / var * (x[:, None] - means)
    return (weights[..., None] * each).sum(1)


def model():
    return from_denoiser(denoiser, sigma_max=80.0, shape=(2,))


def wrong():
    """The same, with a network that predicts the noise taken for one that predicts the data."""
    return from_denoiser(lambda x, sigma: (x - denoiser(x, sigma)) / sigma.reshape(-1, 1), sigma_max=80.0, shape=(2,))
'''

DATA = """import numpy as np

rng = np.random.default_rng(0)
means = np.array([[-1.0, 0.5], [1.0, -0.5]])
np.save("held-out.npy", (means[rng.integers(0, 2, 400)] + 0.2 * rng.normal(size=(400, 2))).astype(np.float32))
"""

PIPELINE = """import torch

from mine import model
from sde_diffusion.sampling import sample

x = sample(model(), 1000, solver="pf-ode", nfe=10, seed=0)
print("mean |x|", float(x.norm(dim=1).mean()), "in the loop of the application")
"""

JOURNEYS: dict[str, list[Step]] = {
    "student": [
        Step("the lecture's alpha, g and SNR", "sdediff show schedule --out schedule.png"),
        Step("data on its way to noise", "sdediff show forward bundled --out forward.png"),
        Step("points first: seconds", "sdediff train --data moons --steps 400 --width 64 --out runs/moons"),
        Step("the score that it learned", "sdediff show score runs/moons --out score.png"),
        Step("the way back", "sdediff show trajectories runs/moons --nfe 30 --out paths.png"),
        Step("pictures of one's own", "python shapes.py", "shapes.py", SHAPES),
        Step(
            "train in one go, by class",
            "sdediff train --data photos --size 16x16 --labels --steps 300 --batch-size 32 --sample-every 100 "
            "--channels 24 --out runs/photos",
        ),
        Step("what was in them", "sdediff inspect photos-16x16"),
        Step("boxes alone", "sdediff sample runs/photos --label box --n 16 --nfe 10 --out boxes"),
        Step("both, side by side", "sdediff sample runs/photos --label all --n 16 --nfe 10 --out both"),
        Step("noise becomes digits", "sdediff show film bundled --n 9 --nfe 20 --out film.gif"),
    ],
    "researcher": [
        Step("what there is", "sdediff solvers"),
        Step("a solver of one's own is verified", "sdediff verify midpoint.py:Midpoint", "midpoint.py", MIDPOINT),
        Step(
            "and compared, with intervals",
            "sdediff compare bundled --solvers midpoint.py:Midpoint,ddim,unipc,pf-ode --nfe 5,11 --n 96 --paired 24 "
            "--reference-steps 100 --out compared",
        ),
        Step("seen", "sdediff show solvers bundled --nfe 5,10 --out solvers.png"),
        Step(
            "a network of one's own",
            "sdediff compare --model net.py:model --data moons --solvers ddim,pf-ode --nfe 5,10 --n 400 --paired 64 "
            "--reference-steps 200 --out own",
            "net.py",
            NETWORK,
        ),
        Step(
            "quality with standard errors",
            "sdediff evaluate bundled --n 400 --nfe 10 --metrics kid,sliced-wasserstein --out quality",
        ),
        Step("for a program", "sdediff compare bundled --solvers ddim --nfe 5 --n 32 --paired 8 --out j --json"),
    ],
    "engineer": [
        Step("held-out data", "python data.py", "data.py", DATA),
        Step(
            "a network whose output is taken for another is found out",
            "sdediff doctor --model mine.py:wrong --data held-out.npy; test $? = 1",
            "mine.py",
            DENOISER,
        ),
        Step("the right one passes", "sdediff doctor --model mine.py:model --data held-out.npy"),
        Step("samples", "sdediff sample --model mine.py:model --nfe 10 --out samples"),
        Step(
            "which solver", "sdediff compare --model mine.py:model --data held-out.npy --nfe 5,8 --n 256 --out compared"
        ),
        Step(
            "fitted to the network within a minute",
            "sdediff tune --model mine.py:model --nfe 5 --minutes 0.5 --out tuned",
        ),
        Step("and used", "sdediff sample --model mine.py:model --solver tuned --nfe 5 --out with-tuned"),
        Step(
            "the same samples from their record",
            "sdediff sample --model mine.py:model --record samples/samples.json --out again",
        ),
        Step("within an application", "python application.py", "application.py", PIPELINE),
    ],
}


def environment(folder: Path, clone: Path) -> dict[str, str]:
    """The environment of the commands: ``sdediff`` and ``python`` of the clone first."""
    programs = folder / "bin"
    programs.mkdir()
    for name, words in (("sdediff", "-m sde_diffusion "), ("python", "")):
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    return {**known, "PATH": path, "PYTHONPATH": str(clone), "COLUMNS": "100"}


def pictures(folder: Path) -> set[Path]:
    """The figures and pages in a folder."""
    return {path for path in folder.rglob("*") if path.suffix in (".png", ".gif", ".html", ".svg", ".webp")}


def journey(name: str, keep: Path | None = None) -> tuple[str, float]:
    """Run a journey.

    Args:
        name: a key of ``JOURNEYS``.
        keep: folder to run in; a temporary one by default.

    Returns:
        The transcript, and the seconds that the steps took.

    Raises:
        SystemExit: a step failed.
    """
    with tempfile.TemporaryDirectory() as made:
        folder, clone = keep or Path(made) / "work", Path(made) / "clone"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
        env = environment(Path(made), clone)
        lines, total = [f"# {name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"], 0.0
        print(lines[0], flush=True)
        for step in JOURNEYS[name]:
            before = pictures(folder)
            if step.file:
                (folder / step.file).write_text(step.text)
            cpu, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run(
                step.command,
                shell=True,
                cwd=folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            seconds = time.perf_counter() - start
            total += seconds
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            work = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
            shown = sorted(str(path.relative_to(folder)) for path in pictures(folder) - before)
            if len(shown) > MOST:
                shown = [*shown[:MOST], f"and {len(shown) - MOST} more"]
            part = [f"\n## {step.purpose}", *([f"(writes {step.file})"] if step.file else []), f"$ {step.command}"]
            part += [done.stdout.replace(str(clone), "CLONE").rstrip(), f"-> {seconds:.1f} s, {work:.1f} s of CPU"]
            part += [f"-> shows {', '.join(shown)}"] if shown else []
            print("\n".join(part), flush=True)
            lines += part
            if done.returncode:
                raise SystemExit(f"step '{step.purpose}' of {name} failed with code {done.returncode}")
    everything = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines.append(f"\n# {total:.0f} s in all, {everything.ru_utime + everything.ru_stime:.0f} s of CPU")
    print(lines[-1])
    return "\n".join(lines) + "\n", total


def main() -> None:
    """Run the journey of the command line."""
    parser = argparse.ArgumentParser(description="Run a first hour as typed, on a fresh clone.")
    parser.add_argument("name", choices=JOURNEYS)
    parser.add_argument("--write", action="store_true", help="write the transcript")
    parser.add_argument("--keep", type=Path, help="run in this folder and keep it")
    given = parser.parse_args()
    text, _ = journey(given.name, given.keep)
    if given.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{given.name}.txt").write_text(text)


if __name__ == "__main__":
    main()
