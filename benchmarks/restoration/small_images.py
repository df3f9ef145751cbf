"""CIFAR-10 at 16 x 16, means over blocks of pixels, as a file to train on.

The command writes the training images with their labels.

    python -m benchmarks.restoration.small_images DATA cifar16.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch.nn.functional import avg_pool2d

from sde_diffusion.data import load_data


def main() -> None:
    """Write the file."""
    data_dir, out = Path(sys.argv[1]), Path(sys.argv[2])
    data = load_data("cifar10", data_dir)
    assert data.labels is not None
    small = avg_pool2d(data.batch(slice(None)).float(), 2)
    images = ((small + 1) * 127.5).round().byte()
    np.savez(out, x=images.permute(0, 2, 3, 1).numpy(), labels=data.labels.numpy())
    print(f"{out}: {len(images):,} images of 16 x 16")


if __name__ == "__main__":
    main()
