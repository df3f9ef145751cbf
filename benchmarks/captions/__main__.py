r"""Does a network draw pairs of digits that it never saw together?

    sdediff train --data digit-pairs --channels 24 --multipliers 1,2 --attention 5 --blocks 1 --batch-size 64 \
        --steps 3000 --ema 0.998 --out runs/pairs
    python -m benchmarks.captions runs/pairs [--data-dir DATA] [--json FILE] [--picture FILE]

With --data-dir the set is mnist-pairs, for a run on it. Captions ask for the pairs of the test split, which training
never has, or for those of training. A classifier reads both halves of each sample; it is trained on halves of the
training images, and its accuracy on images of the test split is the ceiling of the other rows.

- digits   share of samples with both digits right, each on its side
- colours  share with all colours right that the caption names
- w        scale of classifier-free guidance
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import matplotlib
from torch import Tensor

from benchmarks.captions.reader import Reading, pairs_of, read, trained_reader
from benchmarks.report import run_parser, write_results
from sde_diffusion import Guided, ScoreModel, load, sample
from sde_diffusion.data import Data, load_data
from sde_diffusion.data.captioned.digit_pairs import VOCABULARY
from sde_diffusion.text import to_caption

matplotlib.use("Agg")
SCALES = (1.0, 2.0, 3.0)
SHOWN = 24


def share(found: list[Any]) -> tuple[float, float]:
    """A share and its standard error."""
    p = sum(map(bool, found)) / len(found)
    return p, math.sqrt(p * (1 - p) / len(found))


def row(name: str, reading: Reading, scale: float | None, seconds: float) -> dict[str, Any]:
    """A row of the table."""
    colours = [c for c in reading.colours if c is not None]
    return {
        "captions": name,
        "w": scale,
        "n": len(reading.digits),
        "digits": share(reading.digits),
        "colours": share(colours),
        "seconds": seconds,
    }


def drawn(model: ScoreModel, captions: Tensor, scale: float, nfe: int) -> Tensor:
    """A sample for each caption."""
    guided = model if scale == 1 else Guided(model, scale)
    return sample(guided.eval(), len(captions), nfe=nfe, caption=captions, progress=False).clamp(-1, 1)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| images | w | n | digits | colours |", "| --- " * 5 + "|"]
    for r in rows:
        w = "" if r["w"] is None else f"{r['w']:g}"
        cells = [f"{r[key][0]:.3f} ± {r[key][1]:.3f}" for key in ("digits", "colours")]
        lines.append(f"| {r['captions']} | {w} | {r['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(x: Tensor, captions: list[str], path: Path) -> None:
    """Samples with their captions."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(6, 4, figsize=(9.6, 7.4))
    for axis, image, caption in zip(axes.flat, x, captions, strict=False):
        axis.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(caption, fontsize=7)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the comparison."""
    parser = run_parser(__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--n", type=int, default=250, help="samples of a row")
    parser.add_argument("--nfe", type=int, default=20, help="evaluations, guided or not, of a sample at w = 1")
    parser.add_argument("--epochs", type=int, default=2, help="of the classifier")
    asked = parser.parse_args()
    name = "digit-pairs" if asked.data_dir is None else "mnist-pairs"
    train, test = (load_data(name, asked.data_dir, split=split) for split in ("train", "test"))
    start = time.process_time()
    reader = trained_reader(train, asked.epochs)
    rows = [row("real, test split", read(reader, test.batch(slice(None)), pairs_of(test)), None, 0.0)]
    print(f"classifier {time.process_time() - start:.0f} s", rows[0], flush=True)
    model = load(asked.run)
    for what, data, scales in (("held-out pairs", test, SCALES), ("pairs of training", train, SCALES[1:2])):
        captions, pairs = part(data, asked.n)
        for scale in scales:
            start = time.process_time()
            x = drawn(model, captions, scale, asked.nfe * (1 if scale == 1 else 2))
            rows.append(row(what, read(reader, x, pairs), scale, time.process_time() - start))
            print(rows[-1], flush=True)
            if asked.picture and what == "held-out pairs" and scale == 2:
                picture(x, [to_caption(c, VOCABULARY) for c in captions[:SHOWN]], asked.picture)
    write_results(asked, table(rows), rows=rows)


def part(data: Data, n: int) -> tuple[Tensor, list[Any]]:
    """The first n captions of a set and their pairs."""
    assert data.condition is not None
    return data.condition.values[:n], pairs_of(data)[:n]


if __name__ == "__main__":
    main()
