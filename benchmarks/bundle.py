"""Make the bundled digits network: train it with one command, then export it with its provenance.

sdediff train --sde vp --steps 6000 --out runs/bundled
python -m benchmarks.bundle runs/bundled
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sde_diffusion.checkpoint import export, find, load
from sde_diffusion.places import BUNDLED
from sde_diffusion.storage import read_json


def main() -> None:
    """Export a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    config, stored = read_json(arguments.run / "config.json"), find(arguments.run)
    options = config["train"]
    provenance = {
        "command": f"sdediff train --sde vp --steps {options['steps']} --seed {options['seed']}",
        "weights": "exponential moving average",
        "train": options,
        "versions": config["versions"],
    }
    arguments.out.parent.mkdir(exist_ok=True)
    path = export(load(arguments.run), arguments.out, data=stored.data, step=stored.step, provenance=provenance)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
