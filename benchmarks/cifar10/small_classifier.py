"""Features of CIFAR-10 at 16 x 16: the 64 means over space of a classifier, trained in three minutes on one core.

    python -m benchmarks.cifar10.small_classifier --data-dir DIR

The weights are stored in half precision in ``benchmarks/networks``. Each feature is shifted and scaled to mean 0 and
standard deviation 1 on the training images, so that a distance is in units of the spread of real images. The .json file
beside the weights has the accuracy on both splits.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cifar10.classifier_features import Classifier, accuracy, fit
from benchmarks.cifar10.images import resident
from sde_diffusion.data import Data
from sde_diffusion.evaluation.features import Extractor, Features
from sde_diffusion.storage.atomic_folder import FORMAT, pack, sha256, to_json, unpack, write_file
from sde_diffusion.storage.provenance import versions

NAME, SHAPE, WIDTH, EPOCHS = "cifar16", (3, 16, 16), 32, 6
FILE = Path(__file__).parents[1] / "networks" / "cifar16-classifier.safetensors"


class SmallImages(Extractor):
    """The classifier's 64 features of images of 16 x 16 in three channels, and its class probabilities.

    >>> found = SmallImages()(torch.zeros(2, 3, 16, 16))
    >>> found.features.shape, found.probabilities.sum(1).round(decimals=4)
    (torch.Size([2, 64]), tensor([1., 1.]))
    """

    name = NAME
    takes_bytes = True
    shape = SHAPE

    def __init__(self, file: Path = FILE) -> None:
        """Read the weights."""
        tensors = {name: value.float() for name, value in unpack(file).items()}
        self._sha256, self.mean, self.std = sha256(file), tensors.pop("mean"), tensors.pop("std")
        self.network = Classifier(SHAPE[0], width=WIDTH).eval().requires_grad_(False)
        self.network.load_state_dict(tensors)

    @property
    def sha256(self) -> str:
        """The hash of the file of the weights."""
        return self._sha256

    def compute(self, x: Tensor) -> Features:
        """The means over space in units of their spread, and the probabilities."""
        values = self.network(x)
        return Features((values - self.mean) / self.std, self.network.head(values).softmax(1))


def small_images(data_dir: Path | None, split: str) -> Data:
    """The images of a split, means over blocks of pixels, with their labels."""
    return resident(data_dir, split, None, SHAPE)


def train(data: Data, epochs: int, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a classifier in half precision, with mean and standard deviation of its features."""
    assert data.labels is not None
    torch.manual_seed(seed)
    network = Classifier(SHAPE[0], width=WIDTH).to(memory_format=torch.channels_last)
    fit(network, data.x, data.labels, epochs)
    with torch.no_grad():
        values = torch.cat([network(part.float() / 127.5 - 1) for part in torch.split(data.x, 1000)])
    std, mean = torch.std_mean(values, 0)
    tensors = {**network.state_dict(), "mean": mean, "std": std}
    return {name: value.contiguous().half() for name, value in tensors.items() if value.is_floating_point()}


def main() -> None:
    """Train the classifier and write it with a note of its accuracy."""
    parser = argparse.ArgumentParser(prog="benchmarks.cifar10.small_classifier", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    sets = {split: small_images(args.data_dir, split) for split in ("train", "test")}
    write_file(args.out, pack(train(sets["train"], args.epochs, args.seed)))
    network = SmallImages(args.out).network
    note = {
        "format": FORMAT,
        "file": args.out.name,
        "sha256": sha256(args.out),
        "command": "python -m benchmarks.cifar10.small_classifier --data-dir DIR",
        "data": {"name": "cifar10 at 16 x 16", "fingerprint": sets["train"].fingerprint},
        "epochs": args.epochs,
        "seed": args.seed,
        "accuracy": {
            split: round(accuracy(network, data.x, data.labels), 4)
            for split, data in sets.items()
            if data.labels is not None
        },
        "versions": versions(),
    }
    write_file(args.out.with_suffix(".json"), to_json(note))
    print(
        f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, {note['accuracy']}, {time.process_time() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
