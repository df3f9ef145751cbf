"""Measure the models of ``benchmarks.latent.training``: quality at equal training and equal sampling time.

    python -m benchmarks.latent [--n 500] [--images 64] [--json FILE]

Generation: squared Frechet distance and KID to the test images in features of the bundled MNIST classifier, with 95 %
intervals, and its certainty, the mean of the largest class probability. Sampling time is CPU time of one core with its
decoder; the latent model and the cascade get as many evaluations as fit into the time of 10 evaluations of the model of
pixels. Super-resolution from 7 to 28 pixels: PSNR of a sample with its standard error over the images, and the Frechet
distance. The methods of inverse problems use the model of pixels, and one of them the network of
``benchmarks.restoration``, which was trained for longer.

The JSON file is written after every row, and rows that it has are not computed again; rows of models that are not
trained yet are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.latent.training import BUDGET, SIZES, mnist
from benchmarks.restoration import psnr
from benchmarks.restoration.methods import OURS
from sde_diffusion import ScoreModel, evaluate, load, sample
from sde_diffusion.cascade.drawing import StageModel, sample_cascade
from sde_diffusion.cascade.stages import split_nfe, stage_folder
from sde_diffusion.data.conditions import Conditions
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.guidance import Downsample
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.report.strips import save_strips
from sde_diffusion.sampling.given.conditions import GivenCondition

RESULTS = Path(__file__).parent.parent / "results"
PRIOR = Path(__file__).parent.parent / "networks" / "mnist.safetensors"
PIXEL_NFE = 10
METHODS = ("pigdm", "moment, 1 iteration")


def timed(draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What a function returns, and its CPU seconds."""
    begin = time.process_time()
    x = draw()
    return x, time.process_time() - begin


def generation(runs: Path, n: int) -> dict[str, Callable[[], Tensor]]:
    """The rows of generation: functions that draw n images."""
    data = mnist("test")
    pixel, latent, coder = (load(runs / name) for name in ("pixel", "latent", "autoencoder"))
    assert isinstance(coder, AutoencoderModel)
    folders = [stage_folder(runs / "cascade", k, size) for k, size in enumerate(SIZES, 1)]
    stages = [load(place) for place in folders] if all(map(finished, folders)) else []

    def seconds(draw: Callable[[], Tensor]) -> float:
        return min(timed(draw)[1] for _ in range(2))

    few = 64
    target = seconds(lambda: quiet(pixel, few, PIXEL_NFE))
    one, eleven = (seconds(partial(quiet, latent, few, nfe)) for nfe in (1, 11))
    equal = max(2, int((target - one) / max((eleven - one) / 10, 1e-9)) + 1)
    total = 12
    while stages and total < 60 and seconds(partial(cascade, stages, few, total + 3, 0.1)) < target:
        total += 3
    split = "+".join(map(str, split_nfe(total, [3, 2, 1])))
    print(f"{few} images at NFE {PIXEL_NFE} of pixels: {target:.2f} s; latents {equal}, cascade {total}", flush=True)
    return {
        "training images": lambda: mnist().batch(slice(0, n)),
        "decoded test images": lambda: coder.decode(coder.encode(data.batch(slice(n, 2 * n)))),
        f"pixels, NFE {PIXEL_NFE}": lambda: quiet(pixel, n, PIXEL_NFE),
        f"latents, NFE {PIXEL_NFE}": lambda: quiet(latent, n, PIXEL_NFE),
        f"latents, NFE {min(equal, 100)}, equal time": lambda: quiet(latent, n, min(equal, 100)),
        **{
            f"cascade, NFE {split}, noise {noise:g}": partial(cascade, stages, n, total, noise)
            for noise in ((0.0, 0.2) if stages else ())
        },
    }


def finished(run: Path) -> bool:
    """Whether a model of the benchmark is trained."""
    return (run / "seconds.json").is_file()


def quiet(model: ScoreModel, n: int, nfe: int) -> Tensor:
    """Samples without a bar."""
    return sample(model, n, nfe=nfe, seed=1, progress=False)


def cascade(stages: list[ScoreModel], n: int, total: int, noise: float) -> Tensor:
    """Samples of the cascade; half of the evaluations are those of the smallest images."""
    split = split_nfe(total, [3, 2, 1])
    made = [
        StageModel(model, nfe, noise if k else 0.0) for k, (model, nfe) in enumerate(zip(stages, split, strict=True))
    ]
    return sample_cascade(made, n, seed=1)[-1]


def enlarged(runs: Path, images: int) -> tuple[dict[str, Callable[[], Tensor]], Tensor, Tensor]:
    """The rows of super-resolution, the small images and the true ones."""
    truth = mnist("test").batch(slice(0, images))
    low = F.avg_pool2d(truth, 4)
    network = load(runs / "superres")

    def sr3(noise: float) -> Tensor:
        given = GivenCondition(Conditions("low", low, "image"), noise).rows(network.network, images)
        return sample(network, images, nfe=20, seed=1, progress=False, condition=given)

    def posterior(model: ScoreModel, method: str) -> Tensor:
        observed = OURS[method](model, Downsample(4), low, 0.02, clip=(-1.0, 1.0))
        return sample(observed, images, solver="dpm++2m-sde", nfe=40, seed=1, progress=False)

    rows: dict[str, Callable[[], Tensor]] = {
        "bicubic": lambda: F.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False),
        **{f"SR3, noise {noise:g}": partial(sr3, noise) for noise in (0.0, 0.2)},
        "SR3, mean of 4": lambda: mean_of(network, low, images),
    }
    prior, longer = load(runs / "pixel"), load(PRIOR)
    rows |= {f"{method}, pixels": partial(posterior, prior, method) for method in METHODS}
    rows |= {f"{METHODS[0]}, longer training": partial(posterior, longer, METHODS[0])}
    return rows, low, truth


def mean_of(network: ScoreModel, low: Tensor, images: int) -> Tensor:
    """The mean of four samples of each image, an estimate of E[x | y]."""
    given = {"image": low}
    draws = [sample(network, images, nfe=20, seed=k, progress=False, condition=given) for k in range(4)]
    return torch.stack(draws).mean(0)


def measured(x: Tensor, reference: FeatureStatistics) -> dict[str, Any]:
    """Frechet distance, KID and certainty with their intervals."""
    extractor = make_extractor("mnist")
    found = evaluate(x.clamp(-1, 1).float(), reference, extractor=extractor, metrics=["frechet", "kid"], progress=False)
    p = extractor(x.clamp(-1, 1).float()).probabilities
    assert p is not None
    sure = p.max(1).values.double()
    return {
        **{name: [found[name].value, *found[name].interval] for name in ("frechet", "kid")},
        "certainty": [float(sure.mean()), 1.96 * float(sure.std()) / math.sqrt(len(sure))],
    }


def main() -> None:
    """Measure every row that the file does not have, and write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--json", type=Path, default=RESULTS / "latent.json")
    parser.add_argument("--runs", type=Path, default=Path(os.environ.get("LATENT_RUNS", "runs/latent-benchmark")))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(given.json.read_text()) if given.json.is_file() else {"generation": {}, "superres": {}}
    names = ("pixel", "autoencoder", "latent", "superres", *(f"cascade/stage-{k}-{s}" for k, s in enumerate(SIZES, 1)))
    trained = [name for name in names if finished(given.runs / name)]
    found["training"] = {name: json.loads((given.runs / name / "seconds.json").read_text()) for name in trained}
    found |= {"budget": BUDGET, "n": given.n, "images": given.images}
    reference = FeatureStatistics.of(mnist("test"), make_extractor("mnist"), "test")
    for name, draw in generation(given.runs, given.n).items():
        if kind_of(name) in map(kind_of, found["generation"]):
            continue
        x, seconds = timed(draw)
        keep(given.runs, "generation", name, x)
        found["generation"][name] = {**measured(x, reference), "ms": 1000 * seconds / len(x)}
        print(name, found["generation"][name], flush=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    rows: dict[str, Callable[[], Tensor]] = {}
    if "superres" in trained:
        rows, low, truth = enlarged(given.runs, given.images)
        keep(given.runs, "superres", "given", F.interpolate(low, scale_factor=4, mode="nearest"))
        keep(given.runs, "superres", "truth", truth)
    for name, draw in rows.items():
        if name in found["superres"]:
            continue
        x, seconds = timed(draw)
        keep(given.runs, "superres", name, x)
        value = psnr(x, truth)
        own = measured(x, reference)
        found["superres"][name] = {
            "psnr": [float(value.mean()), float(value.std()) / math.sqrt(len(value))],
            "frechet": own["frechet"],
            "certainty": own["certainty"],
            "ms": 1000 * seconds / len(x),
        }
        print(name, found["superres"][name], flush=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    given.json.with_suffix(".md").write_text(tables(found))
    orders = {"generation": list(found["generation"]), "superres": ["given", *found["superres"], "truth"]}
    for kind, order in orders.items():
        images = kept(given.runs, kind, order)
        if len(images) > 3:
            labels = [label.replace(", ", "\n") for label in images]
            save_strips(given.json.parent / f"latent-{kind}.png", list(images.values()), [""] * 10, labels)


def kind_of(name: str) -> str:
    """A row without its number of evaluations, which for equal time may differ a little from run to run."""
    return re.sub(r"NFE [0-9+]+", "NFE", name)


def keep(runs: Path, kind: str, name: str, x: Tensor) -> None:
    """Keep the first images of a row for the picture."""
    folder = runs / "shown" / kind
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", x[:10].clamp(-1, 1).float().numpy())


def kept(runs: Path, kind: str, order: list[str]) -> dict[str, Tensor]:
    """The images of the rows that were kept."""
    folder = runs / "shown" / kind
    return {
        name: torch.from_numpy(np.load(folder / f"{name}.npy")) for name in order if (folder / f"{name}.npy").is_file()
    }


def tables(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    spent = found["training"]
    whole = {
        "pixels": spent["pixel"]["seconds"],
        "autoencoder + latents": spent["autoencoder"]["seconds"] + spent["latent"]["seconds"],
        "cascade": sum(value["seconds"] for name, value in spent.items() if name.startswith("cascade")),
        "SR3": spent.get("superres", {}).get("seconds", 0.0),
    }
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in whole.items())
    lines = [
        "# Latent diffusion, a cascade and SR3 on MNIST",
        "",
        "Made by `python -m benchmarks.latent.training` and `python -m benchmarks.latent`.",
        "CPU time of training on one core:",
        f"{times}.",
        "",
        f"{found['n']:,} images; distances to the 10,000 test images in features of the bundled classifier, 95 %",
        "intervals; ms are CPU time of an image, decoded.",
        "",
        "| model | Frechet | KID | certainty | ms |",
        "| --- | --- | --- | --- | --- |",
    ]

    def interval(value: list[float], digits: int) -> str:
        return f"{value[0]:.{digits}f} ({value[1]:.{digits}f} to {value[2]:.{digits}f})"

    for name, row in found["generation"].items():
        sure = f"{row['certainty'][0]:.3f} +- {row['certainty'][1]:.3f}"
        lines.append(
            f"| {name} | {interval(row['frechet'], 2)} | {interval(row['kid'], 3)} | {sure} | {row['ms']:.1f} |"
        )
    lines += [
        "",
        f"Super-resolution from 7 x 7, {found['images']} test images: PSNR of a sample and its standard error.",
        "",
        "| method | PSNR | Frechet | certainty | ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in found["superres"].items():
        value = f"{row['psnr'][0]:.2f} +- {row['psnr'][1]:.2f}"
        lines.append(
            f"| {name} | {value} | {interval(row['frechet'], 1)} | {row['certainty'][0]:.3f} | {row['ms']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
