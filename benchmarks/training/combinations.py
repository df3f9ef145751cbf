"""Training of every process, parametrization, weight and time sampler: a table over combinations on the digits.

    python -m benchmarks.training.combinations [--seconds 180 | --steps N] [--only NAME ...] [--table]

Each combination is trained, sampled and evaluated. Its result is a file ``runs/combinations/NAME.json`` and an image.
Finished combinations are not repeated, and interrupted ones resume from their newest checkpoint. ``--table`` writes
all results to benchmarks/results/combinations.{json,md} and
docs/images/combinations.png. The columns:

- loss      the training loss over the last tenth of the steps, in the combination's own weight
- noise     mean ||eps - eps_theta||^2 on held-out digits: comparable between combinations of one process
- sure      share of samples on which a classifier gives its most probable class more than 0.9
- classes   smallest and largest share of a class among the samples
- frechet   Frechet distance to the training digits, in pixel space; the last row has the distance of held-out digits
- nats      log-likelihood of held-out digits per value, if the process has one
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training.digits_quality import classifier, figures
from sde_diffusion import frechet_distance, sample, train
from sde_diffusion.data import Data, load_data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.pictures import save_grid
from sde_diffusion.sampling.ancestral_chain import ancestral
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.training.defaults import default_model
from sde_diffusion.training.losses import denoising_loss
from sde_diffusion.training.time_sampling import stratified

RESULTS = Path(__file__).parent.parent / "results"
PICTURE = Path(__file__).parent.parent.parent / "docs" / "images" / "combinations.png"


@dataclass(frozen=True)
class Combination:
    """The settings of a training run."""

    sde: str
    predicts: str
    weight: str
    times: str = "stratified"
    network: str = "unet"
    variance: bool = False
    sde_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The parts of the combination, joined to a file name."""
        extra = [self.network] * (self.network != "unet") + ["variance"] * self.variance
        extra += [f"{key}={value}" for key, value in self.sde_settings.items()]
        return ",".join([self.sde, self.predicts, self.weight, self.times, *extra])


# Every process, parametrization, weight and time sampler at least twice.
COMBINATIONS = [
    Combination("vp", "noise", "simple"),
    Combination("vp", "noise", "likelihood", "importance"),
    Combination("vp", "noise", "sigmoid", "loss-second-moment"),
    Combination("vp", "velocity", "min-snr"),
    Combination("vp", "data", "p2"),
    Combination("vp", "score", "simple"),
    Combination("vp", "edm", "edm", "log-normal"),
    Combination("cosine", "velocity", "velocity"),
    Combination("cosine", "velocity", "sigmoid"),
    Combination("cosine", "data", "min-snr"),
    Combination("subvp", "noise", "simple", "uniform"),
    Combination("subvp", "score", "likelihood", "importance"),
    Combination("ve", "edm", "edm", "log-normal"),
    Combination("ve", "noise", "simple"),
    Combination("edm", "edm", "edm", "log-normal"),
    Combination("edm", "edm", "uncertainty", "log-normal"),
    Combination("flow", "velocity", "velocity"),
    Combination("flow", "velocity", "velocity", "logit-normal", network="dit"),
    Combination("flow", "data", "uncertainty", "logit-normal"),
    Combination("ddpm", "noise", "simple", "uniform"),
    Combination("ddpm", "noise", "simple", "loss-second-moment", variance=True),
    Combination("ddpm", "velocity", "p2", variance=True, sde_settings={"schedule": "cosine"}),
    Combination("ddpm", "mean", "output"),
    Combination("ddpm", "mean", "simple", "uniform", variance=True),
    Combination("vp", "data", "output"),
    Combination("vp", "velocity", "velocity", "log-normal-wide"),
    Combination("subvp", "velocity", "velocity", "log-normal-wide"),
]


@lru_cache(maxsize=1)
def _digits() -> tuple[Data, Data]:
    return load_data("digits", split="train"), load_data("digits", split="test")


def _flat(data: Data) -> Tensor:
    return data.batch(torch.arange(len(data))).flatten(1)


@lru_cache(maxsize=1)
def _judge() -> Any:
    data, _ = _digits()
    assert data.labels is not None
    return classifier(_flat(data).numpy(), data.labels.numpy())


def build(combination: Combination) -> ScoreModel:
    """The untrained model."""
    settings: dict[str, Any] = {"variance": combination.variance}
    if combination.network == "dit":
        settings |= {"width": 96, "depth": 6, "heads": 4}
    return default_model(
        _digits()[0],
        sde=combination.sde,
        predicts=combination.predicts,
        network=combination.network,
        sde_settings=combination.sde_settings,
        network_settings=settings,
    )


def options(combination: Combination, steps: int) -> dict[str, Any]:
    """The options of ``train``."""
    return {
        "steps": steps,
        "weight": combination.weight,
        "time_sampling": combination.times,
        "warmup": min(100, steps // 4),
        "ema": max(0.0, min(0.999, 1 - 10 / steps)),
        "checkpoint_every": max(1, min(500, steps // 4)),
        "log_every": max(1, min(50, steps // 10)),
        "progress": False,
    }


def rate(combination: Combination, steps: int = 15) -> float:
    """Steps per second."""
    model, data = build(combination), _digits()[0]
    train(model, data, **options(combination, 4))
    start = time.perf_counter()
    train(model, data, **options(combination, steps))
    return steps / (time.perf_counter() - start)


def samples(model: ScoreModel, combination: Combination, n: int) -> Tensor:
    """Samples of the probability flow with 40 evaluations, or of the chain with its learned variance and 100 steps.

    A predicted mean is that of a step of the whole chain, which shows x_0 poorly: it draws with all of the steps.
    """
    whole = combination.predicts == "mean"
    if not combination.variance and not whole:
        return sample(model, n, nfe=40)
    seeds = seeds_of(0, n)
    with torch.no_grad():
        x = model.sde.prior((n, *(model.shape or ())), seeds=seeds)
        variance = "learned" if combination.variance else "small"
        return ancestral(model, x, steps=None if whole else 100, variance=variance, seeds=seeds)


@torch.no_grad()
def noise_error(model: ScoreModel, data: Data) -> float:
    """The unweighted noise error on held-out data, at stratified times above 0.001."""
    generator = torch.Generator().manual_seed(0)
    x0 = data.batch(torch.arange(len(data)))
    t = model.sde.to_step(stratified(len(x0), 1e-3, generator))
    if float(model.sde.marginal(1.0)[0]) == 0:
        t = t.clamp_max(0.999)
    eps = torch.randn(x0.shape, generator=generator)
    # The loss without the bound of a learned variance: the first half of the network's channels.
    alone = _MeanOnly(model)
    return float(denoising_loss(alone, x0, t, eps, "simple").mean())


class _MeanOnly(ScoreModel):
    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model.network, model.sde, model.parametrization, model.shape, model.sigma_data)

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, None]:
        return super().outputs(x, t, **condition)[0], None


def _log_likelihood(model: ScoreModel, data: Data, n: int = 16) -> float | None:
    try:
        from sde_diffusion.likelihood.flow import log_likelihood
    except ImportError:
        return None
    x = data.batch(torch.arange(min(n, len(data))))
    return float(log_likelihood(model, x, trace="hutchinson", tolerance=1e-2).nats.mean()) / x[0].numel()


def measure(combination: Combination, folder: Path, steps: int, n: int) -> dict[str, Any]:
    """Train, sample and evaluate; resumes an interrupted run."""
    run, data, held_out = folder / combination.name, *_digits()
    start = time.perf_counter()
    resume = (run / "checkpoints").is_dir()
    model = train(build(combination), data, out=run, resume=resume, **options(combination, steps))
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    late = [line["loss"] for line in lines if line["step"] > 0.9 * steps]
    x = samples(model, combination, n)
    save_grid(folder / f"{combination.name}.png", x[:40], columns=10)
    found = figures(x.flatten(1).numpy(), _flat(data).numpy(), _judge())
    return {
        **asdict(combination),
        "steps": steps,
        "seconds": round(seconds, 1),
        "loss": sum(late) / len(late),
        "noise": noise_error(model, held_out),
        "sure": found["sure"],
        "classes": [found["smallest_class"], found["largest_class"]],
        "frechet": float(frechet_distance(x.flatten(1), _flat(data))),
        "nats": _log_likelihood(model, held_out),
    }


def table(folder: Path) -> None:
    """Collect all results into one table and one figure."""
    done = {c.name: folder / f"{c.name}.json" for c in COMBINATIONS}
    rows = {name: json.loads(path.read_text()) for name, path in done.items() if path.exists()}
    if not rows:
        raise SystemExit(f"there are no results in {folder}")
    data, held_out = _digits()
    real = figures(_flat(held_out).numpy(), _flat(data).numpy(), _judge())
    reference = {"sure": real["sure"], "frechet": float(frechet_distance(_flat(held_out), _flat(data)))}
    lines = [
        "| process | predicts | weight | times | loss | noise | sure | classes | Frechet | nats/value |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows.values():
        extra = [row["network"]] * (row["network"] != "unet") + ["variance"] * row["variance"]
        process = " ".join([row["sde"], *map(str, row["sde_settings"].values())])
        lines.append(
            f"| {process} | {', '.join([row['predicts'], *extra])} | {row['weight']} | {row['times']} | "
            f"{row['loss']:.4g} | {row['noise']:.4f} | {row['sure']:.3f} | "
            f"{row['classes'][0]:.2f}-{row['classes'][1]:.2f} | {row['frechet']:.3f} | "
            + (f"{row['nats']:.3f} |" if row["nats"] is not None else "- |")
        )
    held = f"{reference['sure']:.3f} | | {reference['frechet']:.3f} |"
    lines.append(f"| held-out digits | | | | | | {held} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "combinations.json").write_text(json.dumps({"held_out": reference, "rows": rows}, indent=2) + "\n")
    (RESULTS / "combinations.md").write_text("\n".join(lines) + "\n")
    _picture({name: folder / f"{name}.png" for name in rows})
    print("\n".join(lines))


def _picture(pictures: dict[str, Path]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 4
    grid, axes = pyplot.subplots(
        -(-len(pictures) // columns), columns, figsize=(14, 1.65 * -(-len(pictures) // columns))
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, path) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(pyplot.imread(path), cmap="gray")
        axis.set_title(name, fontsize=8)
    grid.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    grid.savefig(PICTURE, dpi=70)


def main() -> None:
    """Run the missing combinations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=180, help="training time of each combination, estimated beforehand"
    )
    parser.add_argument("--steps", type=int, help="number of training steps, instead of --seconds")
    parser.add_argument("--samples", type=int, default=1000, help="number of samples for the metrics; at least 65")
    parser.add_argument("--only", nargs="*", help="names, or parts of names")
    parser.add_argument("--folder", type=Path, default=Path("runs/combinations"))
    parser.add_argument("--table", action="store_true", help="collect the results and stop")
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.folder)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for combination in COMBINATIONS:
        path = arguments.folder / f"{combination.name}.json"
        wanted = arguments.only is None or any(part in combination.name for part in arguments.only)
        if path.exists() or not wanted:
            continue
        plan = arguments.folder / f"{combination.name}.steps"
        if not plan.exists():
            plan.write_text(str(arguments.steps or max(20, int(arguments.seconds * rate(combination)))))
        row = measure(combination, arguments.folder, int(plan.read_text()), arguments.samples)
        path.write_text(json.dumps(row, indent=2) + "\n")
        plan.unlink()
        print(f"{combination.name}: {json.dumps({k: row[k] for k in ('steps', 'loss', 'noise', 'sure', 'frechet')})}")


if __name__ == "__main__":
    main()
