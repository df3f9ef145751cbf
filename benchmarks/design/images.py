"""Training images of the networks in the training set of ``benchmarks.design``, different from all reported problems.

python -m benchmarks.design.images OUT --data-dir DATA

OUT/strokes.npz     1,797 handwritten digits of scikit-learn enlarged to 16 x 16, their contrast raised until most
pixels are black or white
OUT/strokes-28.npz  the same at 28 x 28
OUT/letters-28.npz  10,000 letters of the fonts that come with matplotlib at 28 x 28, turned, slanted and of three sizes
OUT/grey.npz        10,000 CIFAR-10 images in grey at 16 x 16
OUT/grey-28.npz     their centre at 28 x 28
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from sde_diffusion.data import load_data

FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cm[bmrst][10ist]*")


def strokes(size: int) -> Tensor:
    """Enlarged digits, (1797, 1, size, size) in [0, 1]."""
    images = torch.from_numpy(load_digits().images / 16)[:, None]
    large = interpolate(images, size=size, mode="bicubic", align_corners=False)
    return (2.5 * (large - 0.3)).clamp(0, 1)


def letters(size: int, n: int = 10_000, seed: int = 0) -> Tensor:
    """White letters on black, (n, 1, size, size) in [0, 1]."""
    rng = np.random.default_rng(seed)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [path for name in FONTS for path in sorted(folder.glob(name)) if "Display" not in path.name]
    fine = 4 * size  # drawn at this size, then reduced
    fonts = [ImageFont.truetype(str(path), round(fine * part)) for path in files for part in (0.7, 0.85, 1.0)]
    out = np.empty((n, size, size), dtype=np.float32)
    for image in out:
        canvas = Image.new("L", (fine, fine))
        letter, font = rng.choice(list(string.ascii_letters)), fonts[rng.integers(len(fonts))]
        place = tuple(fine / 2 + rng.normal(0, 0.04 * fine, 2))
        ImageDraw.Draw(canvas).text(place, letter, fill=255, font=font, anchor="mm")
        angle, slant = rng.normal(0, 0.15, 2)
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[c, s + slant], [-s, c]])
        shift = fine / 2 - turn @ np.full(2, fine / 2)
        rows = np.concatenate([turn, shift[:, None]], 1).flatten().tolist()
        canvas = canvas.transform((fine, fine), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
        image[:] = np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255
    return torch.from_numpy(out)[:, None]


def grey(data_dir: Path, size: int) -> Tensor:
    """Small grey photographs, (10000, 1, size, size) in [0, 1]: reduced to 16, or the centre crop."""
    x = load_data("cifar10", data_dir).batch(slice(0, 10_000))
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    whole = ((x + 1) / 2 * luma).sum(1, keepdim=True)
    edge = (32 - size) // 2
    return avg_pool2d(whole, 2) if size == 16 else whole[:, :, edge : edge + size, edge : edge + size]


def main() -> None:
    """Write the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = {
        "strokes": strokes(16),
        "strokes-28": strokes(28),
        "letters-28": letters(28),
        "grey": grey(args.data_dir, 16),
        "grey-28": grey(args.data_dir, 28),
    }
    for name, x in made.items():
        np.savez_compressed(args.out / f"{name}.npz", x=(255 * x).round().to(torch.uint8).numpy())


if __name__ == "__main__":
    main()
