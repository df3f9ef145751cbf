r"""What the perceptual distance and the discriminator add to the squared error of an autoencoder, on MNIST.

    python -m benchmarks.latent.autoencoders [--json FILE]

Four KL autoencoders with latents of 1 x 7 x 7 and a large weight of the KL divergence, a bottleneck that the squared
error alone blurs: each with the same weights at the start, the same batches and as many updates. The classifier of the
perceptual distance is trained beforehand; it is another one than that of the Frechet distance. Figures are of the
reconstructions of the 10,000 test images:

- PSNR      10 log10(4 / mean squared error), decibels
- Frechet   squared distance to the test images themselves in features of the bundled classifier, with a 95 % interval
- edges     mean difference of neighbouring pixels, as a share of that of the images; less than 1 is a blur
- kept      share of images whose class by that classifier is that of the image
- seconds   CPU time of the training on one core

Models are in runs/latent-benchmark/autoencoders ($LATENT_RUNS), and those that are there are not trained again; the
data are $SDEDIFF_DATA_DIR/mnist.npz.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.latent.training import QUIET, mnist
from sde_diffusion import ScoreModel, evaluate, load
from sde_diffusion.data import Data, load_data
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.report.strips import save_strips
from sde_diffusion.training.defaults import set_up
from sde_diffusion.training.training_run import train

RESULTS = Path(__file__).parent.parent / "results"
STEPS, CHANNELS, SHOWN = 300, 1, 10
KL_WEIGHT = 0.1
READER: dict[str, Any] = {"steps": 800, "predicts": "class", "batch_size": 32, "ema": 0.99, "network": {"channels": 16}}
TERMS: dict[str, tuple[str, ...]] = {
    "squared error": (),
    "perceptual": ("perceptual",),
    "adversarial": ("adversarial",),
    "both": ("perceptual", "adversarial"),
}


def trained(folder: Path, options: dict[str, Any], data: Data) -> ScoreModel:
    """The model of a folder, trained at the first call; its CPU time is written beside it."""
    if not (folder / "seconds.json").is_file():
        made = set_up({**QUIET, **options, "out": str(folder)}, given_data=data)
        start = time.process_time()
        train(made.model, made.data, made.config, out=folder, progress=True)
        spent = {"seconds": time.process_time() - start, "steps": made.config.steps}
        (folder / "seconds.json").write_text(json.dumps(spent))
    return load(folder)


def options_of(terms: tuple[str, ...], channels: int, steps: int, reader: Path) -> dict[str, Any]:
    """Options of the training of an autoencoder with these terms."""
    found: dict[str, Any] = {
        "autoencoder": "kl",
        "kl_weight": KL_WEIGHT,
        "steps": steps,
        "batch_size": 32,
        "ema": 0.995,
    }
    found["network"] = {"size": "small", "latent_channels": channels}
    if "perceptual" in terms:
        found |= {"features": str(reader), "perceptual": 1.0}
    if "adversarial" in terms:
        found |= {"adversarial": 0.5, "adversarial_after": steps // 4}
    return found


def roughness(x: Tensor) -> float:
    """The mean absolute difference of neighbouring pixels.

    >>> roughness(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    0.5
    """
    return float((x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()) / 2)


@torch.no_grad()
def measured(model: AutoencoderModel, data: Data, reference: FeatureStatistics) -> dict[str, Any]:
    """The figures of the reconstructions of a set."""
    x, extractor = data.batch(slice(None)), make_extractor("mnist")
    y = model.decode(model.encode(x))
    psnr = 10 * (4 / (y - x).square().flatten(1).mean(1).double()).log10()
    y = y.clamp(-1, 1)
    found = evaluate(y, reference, extractor=extractor, metrics=["frechet"], progress=False)["frechet"]
    classes = [extractor(part).probabilities for part in (x, y)]
    assert classes[0] is not None and classes[1] is not None
    kept = float((classes[0].argmax(1) == classes[1].argmax(1)).double().mean())
    return {
        "psnr": [float(psnr.mean()), 1.96 * float(psnr.std()) / math.sqrt(len(psnr))],
        "frechet": [found.value, *found.interval],
        "edges": roughness(y) / roughness(x),
        "kept": kept,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| loss | PSNR | Frechet | edges | kept | training, s |", "| --- " * 6 + "|"]
    for loss, row in rows.items():
        psnr, (value, low, high) = row["psnr"], row["frechet"]
        lines.append(
            f"| {loss} | {psnr[0]:.2f} +- {psnr[1]:.2f} | "
            f"{value:.3f} ({low:.3f} to {high:.3f}) | {row['edges']:.2f} | {row['kept']:.3f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and measure every autoencoder, and write figures, a table and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "autoencoders.json")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = Path(os.environ.get("LATENT_RUNS", "runs/latent-benchmark")) / "autoencoders"
    data, test = mnist(), mnist("test")
    reference = FeatureStatistics.of(test, make_extractor("mnist"), "test")
    labelled = load_data("mnist", os.environ["SDEDIFF_DATA_DIR"])
    trained(runs / "reader", READER, labelled)
    rows: dict[str, dict[str, Any]] = {}
    shown = {"test images": test.batch(slice(0, SHOWN))}
    for loss, terms in TERMS.items():
        place = runs / loss.replace(" ", "-")
        model = trained(place, options_of(terms, given.channels, given.steps, runs / "reader"), data)
        assert isinstance(model, AutoencoderModel)
        rows[loss] = {**measured(model, test, reference), **json.loads((place / "seconds.json").read_text())}
        shown[loss] = model.decode(model.encode(shown["test images"]))
        print(loss, rows[loss], flush=True)
        content = {"n": len(test), "latents": [given.channels, 7, 7], "rows": rows}
        given.json.write_text(json.dumps(content, indent=1) + "\n")
        head = "# Terms of the loss of autoencoders of MNIST\n\nMade by `python -m benchmarks.latent.autoencoders`.\n"
        given.json.with_suffix(".md").write_text(f"{head}\n{table(rows)}")
        save_strips(given.json.with_suffix(".png"), list(shown.values()), [""] * SHOWN, list(shown))


if __name__ == "__main__":
    main()
