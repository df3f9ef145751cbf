r"""What the code of a diffusion autoencoder holds, on digits that training never saw.

    sdediff train --code 16 --batch-size 64 --steps 1200 --ema 0.995 --out runs/codes
    python -m benchmarks.semantic runs/codes [--json FILE] [--picture FILE]

Test images of the bundled digits; errors are root mean squares of pixels in [-1, 1].

- both codes      x again from z and x_1, by the probability flow both ways
- z, new noise    variations: error, and the share that keeps its class by the bundled classifier
- x_1, wrong z    x_1 of the image with the z of another one: the share with the class of the z, and with that of x
- principal       the linear autoencoder with as many numbers as z, for comparison
- linear          accuracy of a linear classifier of z, and of one of as many principal components
- change          z moved to another class by the linear classifier, with its own x_1: the share that becomes the class
- middle          half way between two images of one class: the share that is of the class, and the classifier's
                  certainty, for codes and for the mean of the pixels
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from benchmarks.report import run_parser, write_results
from sde_diffusion import ScoreModel, load
from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features.pretrained_classifier import Classifier
from sde_diffusion.semantic import codes_of, fit_attributes, interpolated, reconstruct, variations

matplotlib.use("Agg")
SEEN, TOLERANCE = 48, 1e-2


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square of a difference."""
    return float((a - b).square().mean().sqrt())


def read(x: Tensor) -> Tensor:
    """Class probabilities of the bundled classifier."""
    found = Classifier("digits")(x.clamp(-1, 1)).probabilities
    assert found is not None
    return found


def share(found: Tensor, wanted: Tensor) -> float:
    """The share of images with a class."""
    return float((found.argmax(1) == wanted).double().mean())


def measure(model: ScoreModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All figures, and the images of the picture."""
    train, test = load_data("digits"), load_data("digits", split="test")
    assert train.labels is not None and test.labels is not None
    pick = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:SEEN]
    x, y, other = test.batch(pick), test.labels[pick], torch.arange(SEEN).roll(1)
    z_train, z = codes_of(model, train.batch(slice(None))), codes_of(model, x)
    attributes = fit_attributes(z_train, train.labels)
    flat = train.batch(slice(None)).flatten(1)
    mean, basis = flat.mean(0), torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][: z.shape[1]]
    parts, parts_train = (x.flatten(1) - mean) @ basis.T, (flat - mean) @ basis.T
    whole = test.batch(slice(None))
    figures: dict[str, Any] = {"classifier on the images": share(read(x), y)}
    again = reconstruct(model, x, tolerance=TOLERANCE)
    figures["both codes, error"] = rms(again, x)
    figures["both codes, class kept"] = share(read(again), y)
    varied = variations(model, x, 2, nfe=20)
    figures["z with new noise, error"] = rms(varied[:, 0], x)
    figures["z with new noise, class kept"] = share(read(varied.flatten(0, 1)), y.repeat_interleave(2))
    swapped = reconstruct(model, x, code=z[other], tolerance=TOLERANCE)
    figures["z of another image, its class"] = share(read(swapped), y[other])
    figures["z of another image, class of x_1"] = share(read(swapped), y)
    figures["principal components, error"] = rms((parts @ basis + mean).reshape(x.shape), x)
    z_test, parts_test = codes_of(model, whole), (whole.flatten(1) - mean) @ basis.T
    figures["linear classifier of z"] = share(attributes.logits(z_test), test.labels)
    figures["linear classifier of principal components"] = share(
        fit_attributes(parts_train, train.labels).logits(parts_test), test.labels
    )
    target = (y + 1 + torch.arange(SEEN) % 9) % 10
    step = torch.stack([attributes.step(z[k : k + 1], int(target[k]), margin=4.0)[0] for k in range(SEEN)])
    changed = reconstruct(model, x, code=z + step, tolerance=TOLERANCE)
    figures["changed, share of the class"] = share(read(changed), target)
    figures["changed, distance"] = rms(changed, x)
    order = y.argsort(stable=True)
    same = order[:-1][y[order[:-1]] == y[order[1:]]], order[1:][y[order[:-1]] == y[order[1:]]]
    way = interpolated(model, x[same[0]], x[same[1]], [0.5], tolerance=TOLERANCE)[0]
    pixels = (x[same[0]] + x[same[1]]) / 2
    for name, middle in (("codes", way), ("pixels", pixels)):
        found = read(middle)
        figures[f"middle of {name}, share of the class"] = share(found, y[same[0]])
        figures[f"middle of {name}, certainty"] = float(found.amax(1).mean())
    shown = interpolated(model, x[:8], x[other[:8]], [0.0, 0.25, 0.5, 0.75, 1.0], tolerance=TOLERANCE)
    rows = {"image": x, "both codes": again, "z, noise 1": varied[:, 0], "z, noise 2": varied[:, 1]}
    rows |= {"class changed": changed}
    rows |= {f"{share_:.0%} of the way": way_ for share_, way_ in zip((0, 0.25, 0.5, 0.75, 1), shown, strict=True)}
    return figures, rows


def picture(rows: dict[str, Tensor], path: Path) -> None:
    """Eight images of each row."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(rows), 9, figsize=(7.4, 0.78 * len(rows)), width_ratios=[1.7, *[1] * 8])
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].text(1, 0.5, name, ha="right", va="center", fontsize=9)
        for axis, image in zip(line[1:], images, strict=False):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
        for axis in line:
            axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0.04, 0.06)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown."""
    return "\n".join(["| figure | value |", "| --- | --- |", *(f"| {k} | {v:.3f} |" for k, v in figures.items())])


def main() -> None:
    """Measure a run."""
    parser = run_parser(__doc__)
    asked = parser.parse_args()
    start = time.process_time()
    figures, rows = measure(load(asked.run))
    print(f"{time.process_time() - start:.0f} s")
    if asked.picture:
        picture(rows, asked.picture)
    write_results(asked, table(figures), figures=figures)


if __name__ == "__main__":
    main()
