r"""Export a trained network with its provenance, for the package or the benchmarks.

The bundled digits network:

    sdediff train --sde vp --steps 10000 --embedding sinusoidal --out runs/bundled
    python -m benchmarks.bundle runs/bundled "sdediff train --sde vp --steps 10000 --embedding sinusoidal"

The bundled network of labelled digits, sde_diffusion/pretrained/digits-labelled.safetensors, and the classifier of
noisy digits of benchmarks/guidance:

    sdediff train --labels --steps 2000 --out runs/labelled
    sdediff train --classifier --steps 3000 --lr 3e-3 --weight-decay 0.1 --dropout 0.2 --ema 0.998 --out runs/noisy
    python -m benchmarks.bundle runs/noisy "sdediff ..." --out benchmarks/networks/digits-noisy-classifier.safetensors

The network of labelled MNIST digits of benchmarks/guidance, benchmarks/networks/mnist-labelled.safetensors:

    sdediff train --data mnist --data-dir DIR --labels --channels 16 --multipliers 1,2,2 --blocks 1 --batch-size 64 \
        --steps 6000 --ema 0.998 --out runs/mnist-labelled

The MNIST network of the solver benchmark, benchmarks/networks/mnist.safetensors:

    sdediff train --data mnist --data-dir DIR --channels 16 --batch-size 64 --steps 5000 --ema 0.998 --out runs/mnist
    python -m benchmarks.bundle runs/mnist "sdediff train --data mnist ..." --out benchmarks/networks/mnist.safetensors

The network of CIFAR-10 at 16 x 16 of benchmarks/restoration, benchmarks/networks/cifar16.safetensors:

    python -m benchmarks.restoration.small_images DIR cifar16.npz
    sdediff train --data cifar16.npz --channels 24 --multipliers 1,2 --attention 8 --blocks 1 --batch-size 64 \
        --steps 2000 --ema 0.995 --out runs/cifar16

and of benchmarks.ranges, cifar16-flow (2,500 updates), cifar16-edm and cifar16-low (2,000 each), with --ema 0.998 and

    --sde flow --predicts velocity
    --sde edm
    --sde vp --beta-max 10.64 --predicts noise

mnist-sinusoidal.safetensors is the same with `--embedding sinusoidal`; the DDIM table on MNIST uses it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sde_diffusion.storage.atomic_folder import read_json
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load
from sde_diffusion.storage.locate import BUNDLED


def main() -> None:
    """Export a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("command", help="the command that trained the run, for the header of the file")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    config, stored = read_json(arguments.run / "config.json"), checkpoint_at(arguments.run)
    provenance = {
        "command": arguments.command,
        "weights": "exponential moving average",
        "train": config["train"],
        "versions": config["versions"],
    }
    arguments.out.parent.mkdir(exist_ok=True)
    data = stored.data.copy()
    if "name" in data:
        data["name"] = Path(data["name"]).name  # a file without its folder
    path = export(load(arguments.run), arguments.out, data=data, step=stored.step, provenance=provenance, force=True)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
