"""Images for the networks that ``benchmarks.design`` fits tables to: other data than those of any reported problem.

python -m benchmarks.design_data OUT --data-dir DATA

OUT/strokes.npz     1,797 handwritten digits of scikit-learn enlarged to 16 x 16, their contrast raised until most
pixels are black or white
OUT/strokes-28.npz  the same at 28 x 28
OUT/grey.npz        10,000 CIFAR-10 images in grey at 16 x 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from sde_diffusion.data import load_data


def strokes(size: int) -> Tensor:
    """Enlarged digits, (1797, 1, size, size) in [0, 1]."""
    images = torch.from_numpy(load_digits().images / 16)[:, None]
    large = interpolate(images, size=size, mode="bicubic", align_corners=False)
    return (2.5 * (large - 0.3)).clamp(0, 1)


def grey(data_dir: Path) -> Tensor:
    """Small grey photographs, (10000, 1, 16, 16) in [0, 1]."""
    x = load_data("cifar10", data_dir).batch(slice(0, 10_000))
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return avg_pool2d(((x + 1) / 2 * luma).sum(1, keepdim=True), 2)


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, x in (("strokes", strokes(16)), ("strokes-28", strokes(28)), ("grey", grey(args.data_dir))):
        np.savez_compressed(args.out / f"{name}.npz", x=(255 * x).round().to(torch.uint8).numpy())


if __name__ == "__main__":
    main()
