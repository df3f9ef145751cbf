"""Quality, diversity and speed of generative models of MNIST: one table, one figure, one page.

    python -m benchmarks.trilemma --data-dir DATA [--runs DIR] [--only WORD ...] [--seeds N] [--html FILE] [--image PNG]

Rows: the families of ``benchmarks.baselines``, trained here on the first call and kept in ``--runs``; the network
``benchmarks/networks/mnist`` with pf-ode at 4, 8 and 20 evaluations and with a solver tuned to it; students of 1, 2 and
4 evaluations, trained here and kept likewise, beside solvers of their teacher, which predicts the velocity
(``mnist-labelled`` without labels). Samples are compared with the 10,000 test images in the features of the bundled
classifier of MNIST:

- frechet, kid        distances; 0 is best, and what n samples cost on average is subtracted
- precision, recall   share of samples near the data, and of the data near the samples: quality and diversity
- samples/s           on one core, in a batch of 100
- bits                bits per dimension of dequantised test images: exact, or a bound where latents are integrated
- reconstruction      root mean square error of test images after the way into the latent and back; white - black is 2

The file of results is written after every row, and rows that it has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.autoregressive import TwoStages
from benchmarks.trilemma import measures, page, students
from benchmarks.trilemma.families import FAMILIES, draw, parameters, trained
from sde_diffusion import ScoreModel, load, sample
from sde_diffusion.data import Data, load_data
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.sampling.inversion import round_trip
from sde_diffusion.tuning import tuned_for
from solvers import Solver

HERE = Path(__file__).resolve().parent.parent
NETWORK = HERE / "networks" / "mnist.safetensors"
NFE = (4, 8, 20)
TEACHER = HERE / "networks" / "mnist-labelled.safetensors"
TUNED = (4, 8)  # of the teacher
MINUTES = 3.0  # of tuning, for all its numbers of evaluations
FEW, LIKELY, INVERTED = 14, 500, 16
Row = dict[str, Any]


class Bench:
    """Data, reference and options of a run."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.train: Data = load_data("mnist", data_dir=asked.data_dir)
        test: Data = load_data("mnist", split="test", data_dir=asked.data_dir)
        self.reference = FeatureStatistics.of(test, make_extractor("mnist"), split="test")
        self.test: Tensor = test.batch(slice(0, LIKELY)).float()
        self.solvers: dict[tuple[int, ...], dict[int, tuple[Solver, float]]] = {}

    def baselines(self) -> Iterator[tuple[str, Any]]:
        """Name of the row, and a function that measures it."""
        for name in FAMILIES:
            for seed in range(self.asked.seeds):
                yield f"{name}, seed {seed}", lambda name=name, seed=seed: self.baseline(name, seed)

    def baseline(self, name: str, seed: int) -> Row:
        """The row of a family."""
        found = trained(name, seed, self.train, self.asked.runs)
        model, family = found.model, FAMILIES[name]
        row: Row = {
            "family": name, "seed": seed, "nfe": family.evaluations, "parameters": parameters(model),
            "training": found.seconds, "objective": family.objective, "likelihood": family.likelihood,
            "bottleneck": family.bottleneck,
        }  # fmt: skip
        if hasattr(model, "nats"):
            row["bits"] = measures.bits(lambda x: torch.cat([model.nats(p) for p in x.split(100)]), self.test)
        if hasattr(model, "reconstruct"):
            row["reconstruction"] = measures.reconstruction(model.reconstruct, self.test)
        if isinstance(model, TwoStages):
            row["codes"] = measures.codes(model, self.test)
        row["rate"] = measures.speed(lambda n: draw(model, n, 1))
        return row | self.samples(draw(model, self.asked.samples, 0))

    def samples(self, x: Tensor) -> Row:
        """The figures of samples, and a few of them as bytes in hexadecimal."""
        few = [bytes(image).hex() for image in measures.levels(x[:FEW].clamp(-1, 1)).flatten(1).tolist()]
        return measures.quality(x, self.reference) | {"shown": few, "n": len(x)}

    def diffusion(self) -> Iterator[tuple[str, Any]]:
        """The rows of the score model."""
        model = load(self.asked.network).eval()
        yield "diffusion, likelihood", lambda: self.density(model)
        for nfe in NFE:
            yield f"pf-ode, {nfe}", lambda nfe=nfe: self.solved(model, "pf-ode", nfe)
        for nfe in NFE:
            yield f"tuned, {nfe}", lambda nfe=nfe: self.tuned(model, NFE, 48, nfe)

    def few_steps(self) -> Iterator[tuple[str, Any]]:
        """The rows of the students, after those of solvers of their teacher."""
        teacher = load(self.asked.teacher).eval()
        for nfe in NFE:
            yield f"teacher pf-ode, {nfe}", lambda nfe=nfe: of_teacher(self.solved(teacher, "pf-ode", nfe))
        for nfe in TUNED:
            yield f"teacher tuned, {nfe}", lambda nfe=nfe: of_teacher(self.tuned(teacher, TUNED, 16, nfe))
        for method in students.UPDATES:
            for nfe in students.BUDGETS:
                yield f"{method}, {nfe}", lambda method=method, nfe=nfe: self.student(teacher, method, nfe)

    def density(self, model: ScoreModel) -> Row:
        """Likelihood, and the error of the way to the code and back."""
        back = round_trip(model, self.test[:INVERTED], tolerance=1e-4)
        return {
            "family": "diffusion", "nfe": "61", "parameters": parameters(model),
            "bits": measures.bits(measures.flow_nats(model), self.test[: 4 * INVERTED]),
            "reconstruction": float(back.error.square().mean().sqrt()),
        }  # fmt: skip

    def solved(self, model: ScoreModel, solver: str | Solver | None, nfe: int, **more: Any) -> Row:
        """The row of a solver."""

        def run(n: int, seed: int) -> Tensor:
            return sample(model, n, solver=solver, nfe=nfe, seed=seed, batch_size=100, progress=False).clamp(-1, 1)

        row: Row = {"family": "diffusion", "solver": solver if isinstance(solver, str) else "tuned", "nfe": str(nfe)}
        row |= {"rate": measures.speed(lambda n: run(n, 1)), **more}
        return row | self.samples(run(self.asked.samples, 0))

    def tuned(self, model: ScoreModel, budgets: tuple[int, ...], noise: int, nfe: int) -> Row:
        """The row of a solver that is tuned here; those of all budgets share reference solutions, and the time."""
        if budgets not in self.solvers:
            start = time.process_time()
            found = tuned_for(
                model, budgets, seed=7, noise_samples=noise, held_out=noise, minutes=MINUTES, progress=False
            )
            took = (time.process_time() - start) / len(budgets)
            self.solvers[budgets] = {n: (tuned.table, took) for n, tuned in found.items()}
        table, took = self.solvers[budgets][nfe]
        return self.solved(model, table, nfe, tuning=took)

    def student(self, model: ScoreModel, method: str, nfe: int) -> Row:
        """The row of a student of the network."""
        found = students.trained(method, nfe, model, self.train, self.asked.runs)
        row = self.solved(found.model, None, nfe, training=found.seconds)
        return row | {"solver": method, "family": page.STUDENT}


def of_teacher(row: Row) -> Row:
    """The row of a solver, among those of the students."""
    return row | {"solver": f"teacher, {row['solver']}", "family": page.STUDENT}


def main() -> None:
    """Measure the rows that are missing and write table, figure and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--network", type=Path, default=NETWORK, help="of the rows of solvers")
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="network that the students learn from")
    parser.add_argument("--runs", type=Path, default=Path("runs/trilemma"))
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="words in the names of rows")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--draw", action="store_true", help="measure nothing; write table, page and figure anew")
    parser.add_argument("--html", type=Path, help="the page, one HTML file")
    parser.add_argument("--image", type=Path, help="the figure, a PNG")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "trilemma.json"
    rows: dict[str, Row] = json.loads(path.read_text()) if path.is_file() else {}
    bench = None if asked.draw else Bench(asked)
    for name, measure in [] if bench is None else [*bench.baselines(), *bench.diffusion(), *bench.few_steps()]:
        if name in rows or (asked.only and not any(word in name for word in asked.only)):
            continue
        rows[name] = measure()
        print(name, {k: v for k, v in rows[name].items() if k != "shown"}, flush=True)
        path.write_text(json.dumps(rows) + "\n")
    page.write(rows, asked.out, asked.html, asked.image)


if __name__ == "__main__":
    main()
