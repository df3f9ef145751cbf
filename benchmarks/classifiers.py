"""Train the bundled feature classifiers, one to three minutes each on one core.

    python -m benchmarks.classifiers digits
    python -m benchmarks.classifiers mnist --data-dir DATA

Each is trained on the training split, with shifts by up to one pixel. Its accuracy on the test split is stored with
the weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features.pretrained_classifier import PRETRAINED, SIZES, Network
from sde_diffusion.storage.atomic_folder import FORMAT, pack, sha256, to_json, write_file
from sde_diffusion.storage.provenance import versions

EPOCHS = {"digits": 120, "mnist": 4}
BATCH, RATE = 100, 2e-3


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """The batch shifted by -1, 0 or 1 pixel along both axes, padded with background."""
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    size = x.shape[-1]
    return nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)[..., down : down + size, right : right + size]


@torch.no_grad()
def accuracy(network: Network, x: Tensor, labels: Tensor) -> float:
    """Share of images whose most probable class is right."""
    found = torch.cat([network(part)[1].argmax(1) for part in torch.split(x, 500)])
    return float((found == labels).double().mean())


def main() -> None:
    """Train one classifier and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", choices=SIZES)
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PRETRAINED)
    arguments = parser.parse_args()
    train, test = (load_data(arguments.data, arguments.data_dir, split=split) for split in ("train", "test"))
    x, labels = train.batch(slice(None)), train.labels
    assert labels is not None and test.labels is not None
    epochs = arguments.epochs or EPOCHS[arguments.data]
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    network = Network(SIZES[arguments.data])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    start = time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for index in torch.split(order[: len(x) // BATCH * BATCH], BATCH):
            loss = nn.functional.cross_entropy(
                network(shifted(x[index], generator))[1], labels[index], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        values = torch.cat([network.body(part) for part in torch.split(x, 500)])
    network.std, network.mean = torch.std_mean(values, 0)
    path = arguments.out / f"{arguments.data}-classifier.safetensors"
    write_file(path, pack(network.eval().state_dict()))
    note = {
        "format": FORMAT,
        "file": path.name,
        "sha256": sha256(path),
        "command": f"python -m benchmarks.classifiers {arguments.data}",
        "data": {"name": train.name, "fingerprint": train.fingerprint},
        "epochs": epochs,
        "seed": arguments.seed,
        "accuracy": {
            "train": accuracy(network, x, labels),
            "test": accuracy(network, test.batch(slice(None)), test.labels),
        },
        "versions": versions(),
    }
    write_file(path.with_suffix(".json"), to_json(note))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {note['accuracy']}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
