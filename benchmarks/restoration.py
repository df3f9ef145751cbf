r"""Restoration of MNIST digits by the methods for linear observations, and by azula's methods on the same network.

    python -m benchmarks.restoration --data-dir DATA [--images 100] [--nfe 60] [--methods moment dps ...] [--out DIR]

Four tasks at noise 0.05 (white - black is 2): the lower half hidden, four times enlarged, a Gaussian blur of 1.5
pixels, and half of the pixels hidden at random. The columns are the PSNR of a sample with its standard error over
images, the residual over the noise (1 if a sample fits the observation), diversity (standard deviation between two
samples of an image), backward passes, seconds. The baselines are the mean image and bilinear enlargement. azula's
samplers get the same network, NFE and clamped range, one image at a time if they couple the samples of a batch.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion import ScoreModel, load, sample
from sde_diffusion.data import load_data
from sde_diffusion.guidance import METHODS, Blur, Downsample, Mask, Operator
from sde_diffusion.guidance.observations import inner

NETWORK = Path(__file__).parent / "networks" / "mnist.safetensors"
RESULTS = Path(__file__).parent / "results"
NOISE, SOLVER = 0.05, "dpm++2m-sde"


def tasks() -> dict[str, Operator]:
    """The operators by name."""
    lower = torch.ones(28, 28, dtype=torch.bool)
    lower[14:] = False
    scattered = torch.rand(28, 28, generator=torch.Generator().manual_seed(5)) < 0.5
    return {
        "lower half hidden": Mask(lower),
        "4x super-resolution": Downsample(4),
        "deblurring": Blur.gaussian(1.5),
        "half of the pixels hidden": Mask(scattered),
    }


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """The PSNR of each image in [-1, 1], (B,)."""
    return 10 * torch.log10(4 / (x.clamp(-1, 1) - truth).square().flatten(1).mean(1).clamp_min(1e-12))


def baseline(operator: Operator, y: Tensor, mean: Tensor) -> Tensor:
    """Bilinear enlargement, the mean image behind what is hidden, or the blurred image itself."""
    if isinstance(operator, Downsample):
        return F.interpolate(y, mean.shape[2:], mode="bilinear", align_corners=False)
    if isinstance(operator, Mask):
        return torch.where(operator.visible, y, mean)
    return y


def azula_methods(model: ScoreModel, nfe: int) -> dict[str, Callable[[Operator, Tensor, Tensor], Tensor]]:
    """azula's posterior samplers as (A, y, x1) -> x0, on the default grid of its DDIM sampler.

    Raises:
        ImportError: azula is not installed.
    """
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.sample import DDIMSampler

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = model.sde.marginal(t.double().clamp_min(1e-3))
        return alpha.float(), sigma.float()

    class Network(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            at = t.double().clamp_min(1e-3).expand(len(x))
            return DiracPosterior(model.denoise(x, at).clamp(-1, 1))  # MMPS is not finite here without it

    def one_by_one(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Operator, Tensor, Tensor], Tensor]:
        return lambda _, y, x1: torch.cat([run(y[k : k + 1], x1[k : k + 1]) for k in range(len(x1))])

    settings = {"steps": nfe, "silent": True}

    def dps(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        return one_by_one(lambda v, x: DPSSampler(Network(), v, operator, **settings)(x))(operator, y, x1)

    def pgdm(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        return PGDMSampler(Network(), y, operator, operator.pseudo_inverse, eta=1.0, **settings)(x1)

    def mmps(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        denoiser = MMPSDenoiser(
            Network(), y.flatten(1), lambda x: operator(x).flatten(1), lambda u: NOISE**2 * u, "cg", iterations=3
        )
        return DDIMSampler(denoiser, eta=1.0, **settings)(x1)

    return {"azula DPS": dps, "azula PGDM": pgdm, "azula MMPS, 3 iterations": mmps}


def measure(data_dir: Path | None, images: int, nfe: int, methods: list[str], peers: bool) -> list[dict[str, Any]]:
    """One row for each task and method."""
    model = load(NETWORK).eval()
    truth = load_data("mnist", split="test", data_dir=data_dir).batch(slice(None, images)).float()
    mean = load_data("mnist", data_dir=data_dir).batch(slice(None, 5000)).float().mean(0, keepdim=True)
    rows: list[dict[str, Any]] = []
    for name, operator in tasks().items():
        generator = torch.Generator().manual_seed(1)
        clean = operator(truth)
        y = clean + NOISE * torch.randn(clean.shape, generator=generator)
        y = operator(y) if isinstance(operator, Mask) else y
        reached = (operator(torch.ones_like(truth[:1])) != 0).sum()

        def row(method: str, draws: list[Tensor], seconds: float, backward: int, task: str = name) -> None:
            finite = torch.stack([x.flatten(1).isfinite().all(1) for x in draws]).all(0)
            if not bool(finite.any()):
                lost = dict.fromkeys(("psnr", "psnr_error", "residual", "diversity"), math.nan)
                rows.append({"task": task, "method": method, **lost, "finite": 0.0, "backward": backward})
                rows[-1] |= {"seconds": seconds, "nfe": nfe}
                return
            first = draws[0][finite]
            error = (y[finite] - operator(first)) * (operator(torch.ones_like(truth[:1])) != 0)  # noqa: B023
            value = psnr(first, truth[finite])
            residual = (inner(error, error).reshape(-1) / reached).sqrt() / NOISE  # noqa: B023
            spread = (draws[0] - draws[-1])[finite].square().mean().sqrt() / math.sqrt(2)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "psnr": float(value.mean()),
                    "psnr_error": float(value.std() / math.sqrt(len(value))) if len(value) > 1 else math.nan,
                    "residual": float(residual.median()),
                    "diversity": float(spread),
                    "finite": float(finite.double().mean()),
                    "backward": backward,
                    "seconds": seconds,
                    "nfe": nfe,
                }
            )
            print(rows[-1], flush=True)

        row("baseline", [baseline(operator, y, mean)], 0.0, 0)
        for method in methods:
            start = time.perf_counter()
            observed = METHODS[method](model, operator, y, NOISE, clip=(-1.0, 1.0))
            draws = [sample(observed, images, solver=SOLVER, nfe=nfe, seed=k, batch_size=images) for k in (0, 1)]
            row(method, draws, (time.perf_counter() - start) / 2, int(observed.backward) * nfe)
        for method, run in (azula_methods(model, nfe) if peers else {}).items():
            start = time.perf_counter()
            draws = []
            for k in (0, 1):
                torch.manual_seed(k)
                x1 = model.sde.prior(truth.shape, seeds=range(k * images, (k + 1) * images))
                draws.append(run(operator, y, x1))
            row(method, draws, (time.perf_counter() - start) / 2, nfe * (4 if "MMPS" in method else 1))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| task | method | PSNR of a sample | residual / noise | diversity | finite | backward | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['task']} | {r['method']} | {r['psnr']:.2f} +- {r['psnr_error']:.2f} | {r['residual']:.2f} | "
        f"{r['diversity']:.3f} | {r['finite']:.0%} | {r['backward']} | {r['seconds']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.restoration", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--nfe", type=int, default=60)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.images < 2 or options.nfe < 2:
        parser.error(f"--images and --nfe are at least 2; got {options.images} and {options.nfe}")
    torch.set_num_threads(1)
    rows = measure(options.data_dir, options.images, options.nfe, options.methods, not options.no_peers)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "restoration.json").write_text(json.dumps(rows, indent=1) + "\n")
    head = (
        "# Restoration of MNIST digits\n\n"
        f"Made by `python -m benchmarks.restoration --images {options.images} --nfe {options.nfe}`; noise {NOISE}, "
        f"solver {SOLVER}.\n\n"
    )
    (options.out / "restoration.md").write_text(head + table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
