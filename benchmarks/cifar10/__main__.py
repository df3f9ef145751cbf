"""CIFAR-10 in one command.

    python -m benchmarks.cifar10 --data-dir DIR --out cifar10              # a GPU: 20 minutes of training
    python -m benchmarks.cifar10 --data-dir DIR --out small --miniature    # the CPU: 3 minutes

Trains a VP U-Net, draws samples with every solver at every NFE, and measures their squared Frechet distance to the
training images: in Inception features with ``--weights``, else in those of a classifier that is trained here on the
same images. The best scheduler of diffusers, chosen at each NFE on the same network, is a row of its own. Writes
``results.json``, ``table.md``, ``curve.png`` and ``samples.png``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar10.classifier_features import classifier
from benchmarks.cifar10.images import resident
from benchmarks.cifar10.network_training import trained
from benchmarks.cifar10.rows import Row, ours, table, theirs
from benchmarks.cifar10.settings import FULL, MINIATURE, Settings
from sde_diffusion import ScoreModel, sample
from sde_diffusion.evaluation.features import Extractor, make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.files.writing import require_new
from sde_diffusion.report.pictures import save_figure, save_grid
from sde_diffusion.storage.provenance import versions


def commit() -> str:
    """The commit of the code; empty outside a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def plot(path: Path, rows: list[Row], features: str) -> None:
    """Draw the distance of each solver against its evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for solver in dict.fromkeys(row.solver for row in rows):
        line = [(row.nfe, row.frechet) for row in rows if row.solver == solver and row.frechet is not None]
        if line:
            errors = [1.96 * e.standard_error for _, e in line]
            axes.errorbar([n for n, _ in line], [e.value for _, e in line], errors, label=solver, marker="o", capsize=3)
    ticks = sorted({row.nfe for row in rows})
    axes.set(xscale="log", xlabel="network evaluations", ylabel=f"squared Frechet distance, {features}")
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    if all(row.frechet is None or row.frechet.value > 0 for row in rows):
        axes.set_yscale("log")
    axes.legend()
    save_figure(path, figure, dpi=120)


def run(settings: Settings, out: Path, data_dir: Path | None, device: torch.device, weights: Path | None) -> list[Row]:
    """Train, sample, measure and write."""
    require_new(out)
    start = time.perf_counter()
    data = resident(data_dir, "train", settings.images, settings.shape)
    x = data.x.to(device)
    model, training = trained(settings, x)
    print(f"{training['parameters'] / 1e6:.1f} M parameters, {training['updates']:.0f} updates, "
          f"{training['images/s']:.0f} images/s, loss {training['last loss']:.4f}", flush=True)  # fmt: skip
    extractor, about = features(settings, data, x, weights)
    reference = FeatureStatistics.of(data, extractor, device=str(device))
    rows: list[Row] = []
    for source in (ours, theirs):
        for row in source(model, extractor, reference, settings):
            rows.append(row)
            print(row.solver, row.nfe, row.frechet, row.note, f"{row.seconds:.1f} s", flush=True)
    write(out, settings, model, rows, about, training, device, time.perf_counter() - start)
    return rows


def features(settings: Settings, data: Any, x: torch.Tensor, weights: Path | None) -> tuple[Extractor, dict[str, Any]]:
    """The extractor, and what the record says of it."""
    if weights is not None:
        extractor = make_extractor("inception", weights=weights)
        return extractor, {"name": extractor.name, "sha256": extractor.sha256}
    assert data.labels is not None
    made, accuracy = classifier(x, data.labels.to(x.device), settings.classifier_epochs)
    return made, {"name": made.name, "accuracy on the training images": accuracy}


def write(
    out: Path,
    settings: Settings,
    model: ScoreModel,
    rows: list[Row],
    about: dict[str, Any],
    training: dict[str, float],
    device: torch.device,
    seconds: float,
) -> None:
    """Write the results."""
    out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    made = [{**row._asdict(), "frechet": None if row.frechet is None else asdict(row.frechet)} for row in rows]
    record = {
        "settings": asdict(settings), "device": name, "commit": commit(), "versions": versions(), "features": about,
        "training": training, "seconds": seconds, "rows": made,
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "table.md").write_text(table(rows))
    plot(out / "curve.png", rows, about["name"])
    save_grid(out / "samples.png", sample(model, 64, nfe=max(settings.nfe), batch_size=64).float().cpu())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the files of CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the results")
    parser.add_argument("--minutes", type=float, help="minutes of training")
    parser.add_argument("--miniature", action="store_true", help="small images, network and sets, for the CPU")
    parser.add_argument("--samples", type=int, help="samples of each row")
    parser.add_argument("--weights", type=Path, help="Inception weights (torch-fidelity), for published figures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    settings = MINIATURE if args.miniature else FULL
    asked = {name: value for name in ("minutes", "samples") if (value := getattr(args, name)) is not None}
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    run(replace(settings, **asked), args.out, args.data_dir, torch.device(args.device), args.weights)
    print((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
